// Send a file or a text to a service, and show its answer: lines over the image where there are some, else as it is.

import { byId, bytes, copy, describe, make, milliseconds, number, problemOf } from "./common.js";
import { forget, lay, mark } from "./overlay.js";

const IMAGES = "image/png,image/jpeg,image/webp,image/tiff,image/bmp";
const STAGES = ["queue", "decode", "compute"];

let services = [];
let service = null;
/** What was sent last: {blob, name, type}, and text when it was written here. */
let sent = null;
let request = null;
let answer = null;
let countdown = 0;
let pictureUrl = "";

// ---- the service

function choose(chosen) {
  service = chosen;
  const image = service.input === "image";
  byId("heading").textContent = image ? "Read the text of an image" : `Try ${service.name}`;
  byId("lede").textContent = `Sent to the service ${service.name} at POST ${service.route}`;
  byId("invite").textContent = image ? "Drop an image here" : "Drop a file here";
  byId("choose").textContent = image ? "Choose an image" : "Choose a file";
  byId("limits").textContent = image
    ? `PNG, JPEG, WebP, TIFF or BMP, up to ${service.max_body_mib} MB`
    : `Any kind of file, up to ${service.max_body_mib} MB`;
  byId("file").accept = image ? IMAGES : "";
  byId("example").hidden = !image;
  byId("writing").hidden = image;
  showCommand();
}

async function loadServices() {
  let found;
  try {
    const response = await fetch("/.fleet/services.json", { cache: "no-store" });
    if (!response.ok) throw new Error(`status ${response.status}`);
    found = await response.json();
  } catch {
    showProblem({ title: "No answer", detail: "This host could not be asked for its services. Load the page again in a while." });
    byId("again").hidden = true;
    return;
  }
  services = found;
  const select = byId("service");
  select.replaceChildren(...services.map((one, place) => make("option", { value: place }, `${one.name}, ${one.route}`)));
  byId("services").hidden = services.length < 2;
  select.addEventListener("change", () => {
    clear();
    sent = null;
    choose(services[Number(select.value)]);
  });
  if (services.length) choose(services[0]);
}

// ---- sending

function say(text) {
  byId("said").textContent = text;
}

/** Show nothing but the input. */
function clear() {
  request?.abort();
  request = null;
  answer = null;
  clearInterval(countdown);
  for (const id of ["progress", "problem", "result"]) byId(id).hidden = true;
  byId("input").classList.remove("small");
}

function sendFile(file) {
  send({ blob: file, name: file.name || "pasted image", type: file.type || "application/octet-stream" });
}

function send(what) {
  if (!service) return;
  clear();
  sent = what;
  byId("input").classList.add("small");
  showCommand();
  const limit = service.max_body_mib * 2 ** 20;
  if (what.blob.size > limit) {
    showProblem({
      title: "File too large",
      detail: `${what.name} has ${bytes(what.blob.size)}; this service takes up to ${bytes(limit)}. It was not sent.`,
    });
    byId("again").hidden = true;
    return;
  }
  if (!what.blob.size) {
    showProblem({ title: "Empty file", detail: `${what.name} has no content. It was not sent.` });
    byId("again").hidden = true;
    return;
  }
  const began = performance.now();
  // Not fetch(), which does not tell how much of an upload has gone.
  const mine = new XMLHttpRequest();
  request = mine;
  showProgress(what, 0);
  mine.upload.onprogress = (event) => showProgress(what, event.loaded / event.total);
  mine.onload = () => request === mine && take(mine, performance.now() - began);
  mine.onerror = () =>
    request === mine &&
    showProblem({
      title: "No answer",
      detail:
        "The connection ended before an answer came. Is the host up, and can this device reach it?" +
        // Who refuses a large upload may close the connection before the answer can be read.
        (what.blob.size > 2 ** 20 ? ` Or does something in between not take ${bytes(what.blob.size)}?` : ""),
    });
  mine.open("POST", service.route);
  mine.setRequestHeader("Content-Type", what.type);
  mine.send(what.blob);
}

function showProgress(what, part) {
  byId("progress").hidden = false;
  byId("moved").style.width = `${Math.round(part * 100)}%`;
  byId("track").setAttribute("aria-valuenow", Math.round(part * 100));
  byId("track").classList.toggle("waits", part >= 1);
  const text = part >= 1 ? "Waiting for the answer" : `Sending ${what.name}, ${bytes(what.blob.size)}`;
  if (byId("doing").textContent !== text || part === 0) say(text);
  byId("doing").textContent = text;
}

/** What became of a request. */
function take(done, took) {
  const header = (name) => done.getResponseHeader(name) || "";
  const place = { host: header("X-Fleet-Host"), edge: header("X-Fleet-Edge"), requestId: header("X-Request-ID") };
  if (done.status >= 200 && done.status < 300) {
    showAnswer(done.responseText, header("Content-Type"), place, took);
    return;
  }
  const problem = problemOf(done.status, done.responseText, place.requestId);
  showProblem({ ...problem, status: done.status, retryAfter: header("Retry-After"), host: place.host });
}

// ---- problems

function showProblem({ title, detail, status, kind, requestId, retryAfter, host }) {
  request = null;
  byId("progress").hidden = true;
  byId("problem").hidden = false;
  byId("problem-title").textContent = title;
  byId("problem-detail").textContent = detail;
  describe(byId("problem-facts"), [["Status", status], ["Kind", kind], ["Host", host], ["Request id", requestId]]);
  byId("again").hidden = false;
  byId("copy-request").hidden = !requestId;
  byId("copy-request").dataset.text = requestId ?? "";
  say("");
  wait(Number(retryAfter));
  byId("problem").focus();
}

/** Count the seconds down that the server asks to wait. */
function wait(left) {
  const line = byId("problem-wait");
  line.hidden = !(left > 0);
  const tell = () => {
    line.textContent = left > 0 ? `The server asks to wait ${left} s before the next try.` : "You can try again now.";
  };
  if (!(left > 0)) return;
  tell();
  countdown = setInterval(() => {
    left -= 1;
    tell();
    if (left <= 0) clearInterval(countdown);
  }, 1000);
}

// ---- answers

function showAnswer(text, type, place, took) {
  request = null;
  byId("progress").hidden = true;
  byId("result").hidden = false;
  let members = null;
  if (/\bjson\b/.test(type)) {
    try {
      members = JSON.parse(text);
    } catch {
      // Shown as it came.
    }
  }
  const object = members && typeof members === "object" ? members : {};
  const lines = Array.isArray(object.lines) && object.width && object.height ? object.lines : null;
  answer = {
    text: typeof object.text === "string" ? object.text : "",
    json: members === null ? text : JSON.stringify(members, null, 2),
    lines,
  };
  showPicture(object, lines);
  showViews();
  showTiming(object.timing_ms, took);
  describe(byId("facts"), [
    ["Host", place.host],
    ["Edge", place.edge],
    ["Device", object.device],
    ["Service", service.name],
    ["Model", object.model?.name],
    ["Release", object.model?.release],
    ["Batch", object.timing_ms?.batch && `${object.timing_ms.batch} computed together`],
    ["Request id", place.requestId || object.request_id],
  ]);
  say(lines ? `${count(lines.length)} found` : "The answer is here");
}

const count = (lines) => (lines === 1 ? "1 line" : `${number(lines)} lines`);

function showPicture(object, lines) {
  const figure = byId("figure");
  figure.hidden = !lines;
  byId("result").classList.toggle("alone", !lines);
  if (pictureUrl) URL.revokeObjectURL(pictureUrl);
  pictureUrl = "";
  if (!lines) {
    forget();
    return;
  }
  pictureUrl = URL.createObjectURL(sent.blob);
  byId("image").alt = `${sent.name}, as it was sent`;
  byId("image").src = pictureUrl;
  byId("caption").textContent = `${sent.name}, ${object.width} × ${object.height}, ${bytes(sent.blob.size)}`;
  lay(object, lines, select);
}

/** Text, lines and JSON; an answer without lines is JSON alone. */
function showViews() {
  byId("view-text").textContent = answer.text || "There is no text in it.";
  byId("view-text").classList.toggle("none", !answer.text);
  byId("view-json").textContent = answer.json;
  byId("lines").replaceChildren(
    ...(answer.lines ?? []).map((line, place) =>
      make(
        "li",
        { role: "option", id: `line-${place}`, "aria-selected": "false", class: line.score < 0.8 ? "unsure" : null },
        make("span", { class: "words", dir: "auto" }, line.text),
        make("span", { class: "score" }, `${(line.score * 100).toFixed(1)} %`),
      ),
    ),
  );
  byId("tab-text").hidden = byId("tab-lines").hidden = !answer.lines;
  open(answer.lines ? "text" : "json");
}

function showTiming(timing, took) {
  const known = STAGES.filter((stage) => typeof timing?.[stage] === "number");
  const total = typeof timing?.total === "number" ? timing.total : null;
  const split = byId("split");
  split.hidden = !known.length || !total;
  split.replaceChildren(
    ...known.map((stage) => {
      const part = make("span", { class: stage });
      part.style.flexGrow = Math.max(timing[stage], 0);
      return part;
    }),
  );
  const rows = known.map((stage) => [stage, stage[0].toUpperCase() + stage.slice(1), timing[stage]]);
  if (total !== null) rows.push(["total", "Total", total]);
  rows.push(["trip", "Round trip", took]);
  byId("timing").replaceChildren(
    ...rows.map(([key, name, value]) =>
      make("div", { class: key }, make("dt", {}, name), make("dd", {}, milliseconds(value))),
    ),
  );
}

// ---- views

const TABS = ["text", "lines", "json"];

function open(name) {
  for (const one of TABS) {
    const tab = byId(`tab-${one}`);
    tab.setAttribute("aria-selected", String(one === name));
    tab.tabIndex = one === name ? 0 : -1;
    byId(`view-${one}`).hidden = one !== name;
  }
  byId("copy").textContent = name === "json" ? "Copy JSON" : "Copy text";
  byId("copy").dataset.of = name;
}

function turn(event) {
  const shown = TABS.filter((one) => !byId(`tab-${one}`).hidden);
  const place = shown.findIndex((one) => byId(`tab-${one}`).getAttribute("aria-selected") === "true");
  const last = shown.length - 1;
  const to = { ArrowRight: place === last ? 0 : place + 1, ArrowLeft: place ? place - 1 : last, Home: 0, End: last };
  if (!(event.key in to)) return;
  event.preventDefault();
  open(shown[to[event.key]]);
  byId(`tab-${shown[to[event.key]]}`).focus();
}

/** Mark a line in the list and its box over the image. */
function select(place, reveal = true) {
  const list = byId("lines");
  for (const line of list.children) line.setAttribute("aria-selected", String(line.id === `line-${place}`));
  const chosen = list.children[place];
  if (!chosen) {
    list.removeAttribute("aria-activedescendant");
    mark(-1);
    return;
  }
  list.setAttribute("aria-activedescendant", chosen.id);
  mark(place);
  if (!reveal) return;
  open("lines");
  chosen.scrollIntoView({ block: "nearest" });
}

function walk(event) {
  const list = byId("lines");
  const last = list.children.length - 1;
  const place = [...list.children].findIndex((line) => line.getAttribute("aria-selected") === "true");
  const to = { ArrowDown: Math.min(place + 1, last), ArrowUp: Math.max(place - 1, 0), Home: 0, End: last, Escape: -1 };
  if (!(event.key in to)) return;
  event.preventDefault();
  select(to[event.key]);
}

/** Copy, and say on the button itself whether it worked. */
async function copyFrom(button, text) {
  const label = button.dataset.label ?? button.textContent;
  const done = await copy(text);
  button.textContent = done ? "Copied" : "Not allowed";
  say(done ? "Copied" : "The browser did not allow to copy");
  button.dataset.label = label;
  setTimeout(() => {
    if (button.textContent === "Copied" || button.textContent === "Not allowed") button.textContent = label;
    delete button.dataset.label;
  }, 1500);
}

/** The command that sends the same from a shell. */
function showCommand() {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const url = location.origin + service.route;
  const name = sent?.name ?? (service.input === "image" ? "image.png" : "input.bin");
  const what = sent?.text === undefined ? `--data-binary @${quoted(name)}` : `--data-raw ${quoted(sent.text)}`;
  byId("curl").textContent =
    service.input === "image"
      ? `curl -F image=@${quoted(name)} ${url}`
      : `curl ${what} -H ${quoted(`Content-Type: ${sent?.type ?? "application/octet-stream"}`)} ${url}`;
}

// ---- what the person does

byId("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  // Or the same file could not be chosen twice in a row.
  event.target.value = "";
  if (file) sendFile(file);
});

byId("example").addEventListener("click", async () => {
  const response = await fetch("/assets/example.png");
  sendFile(new File([await response.blob()], "example.png", { type: "image/png" }));
});

byId("input").addEventListener("submit", (event) => {
  event.preventDefault();
  const type = byId("kind").value;
  const text = byId("text").value;
  send({ blob: new Blob([text], { type }), name: "the text", type, text });
});

document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) {
    event.preventDefault();
    sendFile(file);
  } else if (service?.input === "image") {
    say("There is no image in the clipboard");
  }
});

// The whole page is the target, so that a near miss does not open the file in its place.
let depth = 0;
const over = (on) => byId("drop").classList.toggle("over", on);
document.addEventListener("dragenter", (event) => {
  event.preventDefault();
  depth += 1;
  over(true);
});
document.addEventListener("dragleave", () => {
  depth -= 1;
  if (depth <= 0) over(false);
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  over(false);
  const [file] = event.dataTransfer.files;
  if (file) sendFile(file);
  else say("What was dropped is not a file");
});

byId("cancel").addEventListener("click", () => {
  clear();
  say("Cancelled");
  byId("file").focus();
});
byId("again").addEventListener("click", () => send(sent));
byId("copy-request").addEventListener("click", (event) => copyFrom(event.target, event.target.dataset.text));
byId("copy-curl").addEventListener("click", (event) => copyFrom(event.target, byId("curl").textContent));
byId("copy").addEventListener("click", (event) =>
  copyFrom(event.target, event.target.dataset.of === "json" ? answer.json : answer.text),
);
byId("tabs").addEventListener("keydown", turn);
for (const name of TABS) byId(`tab-${name}`).addEventListener("click", () => open(name));
byId("lines").addEventListener("keydown", walk);
byId("lines").addEventListener("click", (event) => {
  const line = event.target.closest("li");
  if (line) select(Number(line.id.slice("line-".length)));
});
byId("lines").addEventListener("pointerover", (event) => {
  const line = event.target.closest("li");
  if (line) mark(Number(line.id.slice("line-".length)), true);
});
byId("lines").addEventListener("pointerleave", () => mark(-1, true));
for (const radio of document.getElementsByName("over")) {
  radio.addEventListener("change", () => {
    byId("stage").dataset.over = radio.value;
  });
}
byId("image").addEventListener("error", () => byId("image").src && byId("stage").classList.add("blank"));
byId("image").addEventListener("load", () => byId("stage").classList.remove("blank"));

loadServices();
