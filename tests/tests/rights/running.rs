//! Rights end, and with them the captures that were begun with them.
