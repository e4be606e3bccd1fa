// The page: where one is, who one is, and whether the service is there.

import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { Capture } from "./capture";
import { Captures } from "./captures";
import { useLive } from "./live";
import { keyOf } from "./model";
import "./page.css";
import { ANYTHING } from "./request";
import { Refusal, hasToken, signIn, signOut } from "./service";
import { Targets } from "./targets";
import { readable } from "./text";
import { Watch } from "./watch";
import type { Source } from "./worker/messages";

type View = "targets" | "captures";

function viewNow(): View {
  return location.hash === "#captures" ? "captures" : "targets";
}

function useView(): View {
  const [view, setView] = useState(viewNow);
  useEffect(() => {
    const note = () => setView(viewNow());
    addEventListener("hashchange", note);
    return () => removeEventListener("hashchange", note);
  }, []);
  return view;
}

function SignIn({ why, onSign }: { why: string; onSign: () => void }) {
  const [given, setGiven] = useState("");
  return (
    <form
      class="sign-in"
      aria-label="Sign in"
      onSubmit={(event) => {
        event.preventDefault();
        signIn(given);
        onSign();
      }}
    >
      <p role="alert">{readable(why)}</p>
      <label>
        Token{" "}
        <input type="password" autocomplete="off" required value={given} onInput={(event) => setGiven(event.currentTarget.value)} />
      </label>
      <button type="submit" class="main">Sign in</button>
      <p>It is kept until this tab is closed, and stands in no address.</p>
    </form>
  );
}

function App() {
  const [session, setSession] = useState(0);
  const [chosen, setChosen] = useState(new Set<string>());
  const [isCapturing, setCapturing] = useState(false);
  const [wish, setWish] = useState(ANYTHING);
  const [watched, setWatched] = useState<Source>();
  const view = useView();
  const live = useLive(session);
  const { trouble, list } = live;
  const refused = trouble instanceof Refusal ? trouble.status : undefined;
  const isUnknown = refused === 401;
  const targets = (list?.targets ?? []).filter((target) => chosen.has(keyOf(target)));
  const watch = (source: Source) => {
    setCapturing(false);
    setWatched(source);
  };
  const leave = () => {
    signOut();
    setSession(session + 1);
  };
  return (
    <>
      <header>
        <h1>packetflix</h1>
        <nav aria-label="Views">
          <a href="#targets" aria-current={view === "targets" && "page"}>Targets</a>
          <a href="#captures" aria-current={view === "captures" && "page"}>Captures</a>
        </nav>
        <span class="node"><bdi>{list && readable(list["node-name"])}</bdi></span>
        {hasToken() && !isUnknown && <button type="button" onClick={leave}>Sign out</button>}
      </header>
      <main>
        <p class="trouble" role="alert">{trouble && !isUnknown && readable(trouble.message) + (refused === 403 ? "" : ": trying again …")}</p>
        {isUnknown && <SignIn why={trouble!.message} onSign={() => setSession(session + 1)} />}
        {/* What was captured is there, whoever may capture more. */}
        {watched ? (
          <Watch source={watched} onLeave={() => setWatched(undefined)} />
        ) : isUnknown ? undefined : view === "captures" ? (
          <Captures session={session} />
        ) : (
          <Targets live={live} chosen={chosen} onChoose={setChosen} onCapture={() => setCapturing(true)} />
        )}
        {isCapturing && targets.length > 0 && (
          <Capture targets={targets} wish={wish} onWish={setWish} onWatch={watch} onClose={() => setCapturing(false)} />
        )}
      </main>
    </>
  );
}

render(<App />, document.getElementById("page")!);
