// The page: where one is, who one is, and whether the service is there.

import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { Capture } from "./capture";
import { Captures } from "./captures";
import { ahead } from "./clock";
import { FileList, useFiles } from "./files";
import { useLive } from "./live";
import { type Target, called, keyOf } from "./model";
import "./page.css";
import { ANYTHING } from "./request";
import { Refusal, hasToken, signIn, signOut } from "./service";
import { type Look, Targets } from "./targets";
import { age, readable } from "./text";
import { Watch } from "./watch";
import type { Source } from "./worker/messages";

const VIEWS = ["targets", "captures", "watch"] as const;

type View = (typeof VIEWS)[number];

/** Each view has an address of its own, so that the browser leads back to it. */
function viewNow(): View {
  return VIEWS.find((view) => location.hash === `#${view}`) ?? "targets";
}

/** Which it is, and what leads to another. */
function useView(): [View, (view: View) => void] {
  const [view, setView] = useState(viewNow);
  useEffect(() => {
    const note = () => setView(viewNow());
    addEventListener("hashchange", note);
    return () => removeEventListener("hashchange", note);
  }, []);
  const go = (view: View) => {
    location.hash = `#${view}`;
    // What tells of that comes later: nothing else is to be shown meanwhile.
    setView(view);
  };
  return [view, go];
}

/** Has the browser ask before it leaves the page, if something would be lost. */
function useQuestion(isUnsaved: boolean): void {
  useEffect(() => {
    if (!isUnsaved) return undefined;
    const ask = (event: BeforeUnloadEvent) => event.preventDefault();
    addEventListener("beforeunload", ask);
    return () => removeEventListener("beforeunload", ask);
  }, [isUnsaved]);
}

/** What is offered to whom nothing is listed: who may capture may do that by name. */
function ByName({ why, onCapture }: { why: string; onCapture: (name: string) => void }) {
  const [name, setName] = useState("");
  return (
    <form
      class="by-name"
      aria-label="Capture by name"
      onSubmit={(event) => {
        event.preventDefault();
        onCapture(name.trim());
      }}
    >
      <p role="status">{readable(why)}, so that none is listed here. What may be captured can be by its name.</p>
      <label>
        Target{" "}
        <input required pattern=".*\S.*" spellcheck={false} placeholder="name, pid:NUMBER, netns:NUMBER" value={name} onInput={(event) => setName(event.currentTarget.value)} />
      </label>{" "}
      <button type="submit" class="main">Capture …</button>
    </form>
  );
}

const FINISHES = "Captures that are being saved end with this, and their files are finished. Go on?";

const LOSES = "The packets that are watched have not been saved, and are lost with this. Go on?";

/** What is said where this computer's clock is another than the service's. */
function Clock() {
  const seconds = ahead();
  if (seconds === undefined) return null;
  return (
    <p class="clock" role="status">
      This computer's clock is {age(Math.abs(seconds))} {seconds > 0 ? "ahead of" : "behind"} the service's. Times here, and in names of files, are the service's.
    </p>
  );
}

function SignIn({ why, onSign }: { why: string; onSign: () => void }) {
  const [given, setGiven] = useState("");
  const [error, setError] = useState<string>();
  return (
    <form
      class="sign-in"
      aria-label="Sign in"
      onSubmit={(event) => {
        event.preventDefault();
        const refusal = signIn(given);
        setError(refusal);
        if (refusal === undefined) onSign();
      }}
    >
      <p role="alert">{readable(why)}</p>
      <label>
        Token{" "}
        <input type="password" autocomplete="off" required value={given} aria-invalid={error !== undefined} aria-describedby="sign-in-error" onInput={(event) => setGiven(event.currentTarget.value)} />
      </label>
      <p id="sign-in-error" class="error" role="alert">{error}</p>
      <button type="submit" class="main">Sign in</button>
      <p>It is kept until this tab is closed, and stands in no address.</p>
    </form>
  );
}

function App() {
  const [session, setSession] = useState(0);
  const [look, setLook] = useState<Look>({ search: "", grouping: "engine" });
  const [chosen, setChosen] = useState(new Set<string>());
  /** What is to be captured, as it was when that was asked for. */
  const [capturing, setCapturing] = useState<Target[]>();
  const [wish, setWish] = useState(ANYTHING);
  const [watched, setWatched] = useState<{ source: Source; number: number }>();
  const [isUnsaved, setUnsaved] = useState(false);
  const [wanted, go] = useView();
  const view = wanted === "watch" && !watched ? "targets" : wanted;
  const files = useFiles();
  useQuestion(isUnsaved || files.isRunning);
  useEffect(() => {
    // What had it may be gone.
    if (document.activeElement === document.body) document.querySelector<HTMLElement>("main")!.focus();
  }, [view]);
  const live = useLive(session);
  const { trouble, list } = live;
  const refused = trouble instanceof Refusal ? trouble.status : undefined;
  const isUnknown = refused === 401;
  // One that has ended meanwhile is refused by the service, in its words.
  const now = new Map(capturing && list?.targets.map((target) => [keyOf(target), target]));
  const targets = capturing?.map((target) => now.get(keyOf(target)) ?? target);
  const watch = (source: Source) => {
    if (!mayLose()) return;
    endCapturing();
    setUnsaved(false);
    setWatched({ source, number: (watched?.number ?? 0) + 1 });
    go("watch");
  };
  const endCapturing = () => setCapturing(undefined);
  const mayLose = () => !isUnsaved || confirm(LOSES);
  const close = () => {
    setUnsaved(false);
    setWatched(undefined);
    if (viewNow() === "watch") location.replace("#targets");
  };
  const leave = () => {
    // Whoever comes next is shown nothing of it.
    if (!mayLose() || (files.isRunning && !confirm(FINISHES))) return;
    close();
    files.leave();
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
          {watched && <a href="#watch" aria-current={view === "watch" && "page"}>Watch</a>}
        </nav>
        <span class="node"><bdi>{list && readable(list["node-name"])}</bdi></span>
        {hasToken() && !isUnknown && <button type="button" onClick={leave}>Sign out</button>}
      </header>
      <main tabIndex={-1}>
        <p class="trouble" role="alert">{trouble && !isUnknown && refused !== 403 && `${readable(trouble.message)}: trying again …`}</p>
        <Clock />
        {!targets && <FileList files={files} />}
        {isUnknown && <SignIn why={trouble!.message} onSign={() => setSession(session + 1)} />}
        {view === "captures" && !isUnknown && <Captures session={session} />}
        {view === "targets" && refused === 403 && (
          <ByName
            why={trouble!.message}
            onCapture={(name) => setCapturing([called(name)])}
          />
        )}
        {view === "targets" && !isUnknown && refused !== 403 && (
          <Targets live={live} look={look} onLook={setLook} chosen={chosen} onChoose={setChosen} onCapture={setCapturing} />
        )}
        {/* It goes on while something else is looked at, and what was captured is there, whoever may capture more. */}
        {watched && (
          <Watch key={watched.number} source={watched.source} isShown={view === "watch"} onUnsaved={setUnsaved} onClose={() => mayLose() && close()} />
        )}
        {targets && (
          <Capture targets={targets} wish={wish} files={files} onWish={setWish} onWatch={watch} onClose={endCapturing} />
        )}
      </main>
    </>
  );
}

// What its streams gave has ended when it was left.
addEventListener("pageshow", ({ persisted }) => persisted && location.reload());
render(<App />, document.getElementById("page")!);
