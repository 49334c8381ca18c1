// The page of `kiln judge`. Texts of models and people only ever go through textContent or value: they are never markup.
"use strict";

const $ = (id) => document.getElementById(id);
const page = Array.from(crypto.getRandomValues(new Uint32Array(2)), (n) => n.toString(16)).join("");
const BEAT_MS = 5000;

// The session is this tab's: another tab may be another rater. It outlives a reload.
let token = sessionStorage.getItem("token");
let rating = null;
let shownAt = 0;
let busy = false;

class Refused extends Error {
  constructor(kind, text) { super(text); this.kind = kind; }
}

async function ask(request) {
  let response, reply;
  try {
    response = await fetch("api", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ page, ...request }),
    });
    reply = await response.json();
  } catch {
    throw new Refused("gone", "kiln judge does not answer: this was not kept. Is it still running? Then try again.");
  }
  if (!response.ok) throw new Refused(reply.kind, reply.error);
  return reply;
}

function complain(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

function only(id) {
  for (const name of ["door", "work", "finished"]) $(name).hidden = name !== id;
}

const draftKey = () => `draft-${rating.rater}-${rating.shown.item}`;

function show(next, said) {
  rating = next;
  $("rater").textContent = rating.rater;
  $("other").hidden = $("bar").hidden = false;
  $("bar").max = rating.total;
  $("bar").value = rating.done;
  $("progress").textContent = `${rating.done} of ${rating.total}`;
  $("said").textContent = said || "";
  if (!rating.shown) {
    only("finished");
    return;
  }
  only("work");
  $("prompt").textContent = rating.shown.prompt;
  $("left").textContent = rating.shown.left;
  $("right").textContent = rating.shown.right;
  $("comment").value = sessionStorage.getItem(draftKey()) ?? rating.comment;
  $("undo").disabled = rating.done === 0;
  $("work").dataset.item = rating.shown.item;
  shownAt = performance.now();
  window.scrollTo(0, 0);
  document.activeElement.blur();
}

// One request at a time: a key that is pressed twice judges once.
async function alone(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
    complain("");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    await recover(error);
  } finally {
    busy = false;
  }
}

async function recover(error) {
  if (error.kind === "ended") {
    const name = rating ? rating.rater : "";
    leave();
    $("name").value = name;
    complain("This session has ended: somebody goes on under this name elsewhere. What you said until then is kept.");
  } else if (error.kind === "not_next") {
    show((await ask({ do: "state", token })).rating);
    complain("That pair was judged already, perhaps in another tab. This is the next one.");
  } else {
    complain(error.message);
  }
}

const judge = (verdict) => alone(async () => {
  if (!rating || !rating.shown) return;
  const request = {
    do: "judge", token, item: rating.shown.item, verdict,
    comment: $("comment").value, elapsed_ms: Math.round(performance.now() - shownAt),
  };
  const reply = await ask(request);
  sessionStorage.removeItem(draftKey());
  show(reply.rating, { left: "left", right: "right", tie: "tie", bad: "both bad", skip: "skipped" }[verdict] + ": kept");
});

const undo = () => alone(async () => {
  if (!rating || rating.done === 0) return;
  show((await ask({ do: "undo", token })).rating, "taken back");
});

const enter = (takeover) => alone(async () => {
  const name = $("name").value;
  try {
    const reply = await ask({ do: "enter", name, takeover });
    token = reply.token;
    sessionStorage.setItem("token", token);
    $("taken").hidden = true;
    show(reply.rating);
  } catch (error) {
    if (error.kind !== "active") throw error;
    $("taken-text").textContent = error.message + ". If that is somebody else, take another name.";
    $("taken").hidden = false;
  }
});

function leave() {
  token = null;
  rating = null;
  sessionStorage.removeItem("token");
  $("other").hidden = $("bar").hidden = true;
  $("rater").textContent = $("progress").textContent = $("said").textContent = "";
  $("taken").hidden = true;
  only("door");
  $("name").value = "";
  $("name").focus();
}

function farewell() {
  if (!token) return;
  const body = new Blob([JSON.stringify({ do: "leave", token, page })], { type: "application/json" });
  navigator.sendBeacon("api", body);
}

const KEYS = { ArrowLeft: "left", ArrowRight: "right", 1: "left", 2: "right", t: "tie", b: "bad", s: "skip" };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  if (event.target.matches("input, textarea")) {
    if (event.key === "Escape") event.target.blur();
    else if (event.key === "Enter" && event.target.id === "name") enter(false);
    return;
  }
  // A key that is held down must not judge pair after pair.
  if (event.repeat || !rating) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "u" || key === "Backspace") undo();
  else if (rating.shown && key === "c") $("comment").focus();
  else if (rating.shown && Object.hasOwn(KEYS, key)) judge(KEYS[key]);
  else return;
  event.preventDefault();
});

$("verdicts").addEventListener("click", (event) => {
  const button = event.target.closest("button[data-verdict]");
  if (button) judge(button.dataset.verdict);
});
$("undo").addEventListener("click", undo);
$("undo-last").addEventListener("click", undo);
$("enter").addEventListener("click", () => enter(false));
$("takeover").addEventListener("click", () => enter(true));
$("name").addEventListener("input", () => { $("taken").hidden = true; });
$("comment").addEventListener("input", () => {
  if (rating && rating.shown) sessionStorage.setItem(draftKey(), $("comment").value);
});
$("other").addEventListener("click", () => { farewell(); leave(); complain(""); });
window.addEventListener("pagehide", farewell);

setInterval(async () => {
  if (!token || busy) return;
  try {
    await ask({ do: "beat", token });
  } catch (error) {
    if (token && error.kind === "ended") recover(error);
  }
}, BEAT_MS);

if (token) {
  alone(async () => { show((await ask({ do: "state", token })).rating); });
}
