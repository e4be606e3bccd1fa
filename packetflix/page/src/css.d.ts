// Styles are the bundler's to put together.
declare module "*.css";
