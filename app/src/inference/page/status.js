// Hosts, devices and queues, asked for every two seconds. An edge gives the answer of one host after the other: all are kept.

import { byId, bytes, make, number, problemOf, seconds } from "./common.js";

const POLL_MS = 2000;
const LIMIT_MS = 5000;
/** Behind an edge with more hosts than this, each is asked more seldom than every two seconds. */
const MOST_IN_TURN = 4;
/** A host that has said nothing for so many turns is shown as lost. */
const LOST_TURNS = 4;
/** How long a problem of one host is shown when nothing more is heard of it. */
const TROUBLE_MS = 30000;
/** More workers than this are a bar, not cells. */
const MOST_CELLS = 24;

/** By host: {status, at, rates}. */
const hosts = new Map();
/** By host, or "" where that is not known: {title, detail, at}. */
const troubles = new Map();
let paused = false;
let asking = false;
let timer = 0;
let known = "";

// ---- asking

async function poll() {
  clearTimeout(timer);
  if (asking || paused || document.hidden) return;
  asking = true;
  try {
    const response = await fetch("/status.json", { cache: "no-store", signal: AbortSignal.timeout(LIMIT_MS) });
    const body = await response.text();
    if (response.ok) {
      keep(JSON.parse(body));
    } else {
      const problem = problemOf(response.status, body, response.headers.get("X-Request-ID"));
      const name = response.headers.get("X-Fleet-Host") ?? "";
      const id = problem.requestId ? ` Request id ${problem.requestId}.` : "";
      note(name, problem.title, `${name ? `${name}: ` : ""}${problem.detail}${id}`);
    }
  } catch (error) {
    note(
      "",
      "The host does not answer",
      error.name === "TimeoutError"
        ? `Nothing came within ${LIMIT_MS / 1000} seconds. Asking again.`
        : "The connection failed. Asking again.",
    );
  }
  asking = false;
  draw();
  timer = setTimeout(poll, turn() / Math.max(1, hosts.size));
}

/** Milliseconds in which every host is asked once. */
const turn = () => POLL_MS * Math.max(1, hosts.size / MOST_IN_TURN);

function note(name, title, detail) {
  // One that stays as it is keeps its text with its first request id, or it would be read out every two seconds.
  const same = troubles.get(name)?.title === title;
  troubles.set(name, { title, detail: same ? troubles.get(name).detail : detail, at: performance.now() });
}

function drawTroubles() {
  for (const [name, one] of troubles) if (performance.now() - one.at > TROUBLE_MS) troubles.delete(name);
  const [first] = troubles.values();
  byId("trouble").hidden = !first;
  if (!first) return;
  const detail = hosts.size ? `${first.detail} Below is what was known last.` : first.detail;
  if (byId("trouble-title").textContent !== first.title) byId("trouble-title").textContent = first.title;
  if (byId("trouble-detail").textContent !== detail) byId("trouble-detail").textContent = detail;
}

function keep(status) {
  const at = performance.now();
  const before = hosts.get(status.host);
  troubles.delete(status.host);
  troubles.delete("");
  hosts.set(status.host, { status, at, rates: before ? rates(before, status, at) : new Map() });
}

/** Requests in a second, by device and service; a counter that went back belongs to new workers. */
function rates(before, status, at) {
  const spent = (at - before.at) / 1000;
  const former = new Map(pairs(before.status).map(([key, one]) => [key, one.requests]));
  return new Map(
    pairs(status)
      .filter(([key, one]) => one.requests >= former.get(key))
      .map(([key, one]) => [key, (one.requests - former.get(key)) / spent]),
  );
}

const pairs = (status) =>
  status.devices.flatMap((device) =>
    device.services.map((service) => [`${device.name} ${service.name} ${service.release}`, service]),
  );

// ---- drawing

function draw() {
  const list = [...hosts.values()].sort((one, other) => one.status.host.localeCompare(other.status.host));
  const fresh = make("div", {}, ...list.map(host));
  patch(byId("hosts"), fresh);
  drawTroubles();
  summarise(list);
}

function lost(one) {
  return performance.now() - one.at > turn() * LOST_TURNS;
}

function summarise(list) {
  if (!list.length) return;
  const devices = list.flatMap((one) => one.status.devices);
  const out = devices.filter((device) => !device.in_rotation).length;
  const gone = list.filter(lost).length;
  const text = [
    list.length > 1 ? `${list.length} hosts` : list[0].status.host,
    `${devices.length - out} of ${devices.length} device${devices.length === 1 ? "" : "s"} in rotation`,
    ...(gone ? [`${gone === list.length && gone === 1 ? "no answer" : `${gone} without an answer`}`] : []),
  ].join(", ");
  byId("summary").textContent = paused ? `${text}; paused` : text;
  // Said aloud when it changes, and not when it is first seen.
  if (known && known !== text) byId("said").textContent = text;
  known = text;
}

function host(one) {
  const { status, at } = one;
  const gone = lost(one);
  const age = (performance.now() - at) / 1000;
  const up = since(status.since, status.time);
  return make(
    "section",
    { class: gone ? "host stale" : "host" },
    make(
      "div",
      { class: "bar" },
      make("div", {}, make("h2", {}, status.host), make("p", { class: "small muted" }, `${status.release ?? "Nothing is deployed"}${up ? `, deployed ${up} ago` : ""}`)),
      gone
        ? make("span", { class: "badge lost" }, `No answer for ${seconds(age)}`)
        : make("span", { class: "small muted live" }, age < 4 ? "Live" : `${seconds(age)} ago`),
    ),
    make("div", { class: "devices" }, ...status.devices.map((device) => deviceCard(device, one))),
  );
}

function deviceCard(device, one) {
  const out = device.out ?? {};
  const ago = since(out.at, one.status.time);
  return make(
    "article",
    { class: device.in_rotation ? "card device" : "card device out" },
    make(
      "div",
      { class: "bar" },
      make("div", {}, make("h3", {}, device.name), make("p", { class: "small muted" }, device.model || device.kind)),
      device.in_rotation
        ? make("span", { class: "badge" }, "In rotation")
        : make("span", { class: "badge out" }, "Out of rotation"),
    ),
    device.in_rotation
      ? null
      : make("p", { class: "why" }, `${out.why || "No reason was given"}${out.by ? `. Taken out by ${out.by}` : ""}${ago ? `, ${ago} ago` : ""}`),
    gauges(device),
    ...device.services.map((service) =>
      serviceBlock(service, one.rates.get(`${device.name} ${service.name} ${service.release}`), one.status.release),
    ),
    device.services.length ? null : make("p", { class: "small warn" }, "No service runs on it"),
  );
}

/** "9.0 of 24 GB": the unit of the whole stands once where the part has the same. */
function share({ used_bytes: used, total_bytes: total }) {
  const [part, whole] = [bytes(used).split(" "), bytes(total).split(" ")];
  return `${part[1] === whole[1] ? part[0] : part.join(" ")} of ${whole.join(" ")}`;
}

function gauges(device) {
  const { memory, utilization, temperature } = device;
  const shown = [
    memory && gauge("Memory", share(memory), memory.used_bytes / memory.total_bytes, 0.95),
    given(utilization) && gauge("Utilisation", `${Math.round(utilization * 100)} %`, utilization, 2),
    given(temperature) && gauge("Temperature", `${Math.round(temperature)} °C`, temperature / 100, 0.85),
  ].filter(Boolean);
  return shown.length ? make("div", { class: "gauges" }, ...shown) : null;
}

const given = (value) => value !== null && value !== undefined;

/** A value as a bar; it is marked from `high` on. */
function gauge(name, text, part, high) {
  return make(
    "div",
    { class: "gauge small" },
    make("span", { class: "muted" }, name),
    make("b", {}, text),
    meter(part, part >= high),
  );
}

function meter(part, high) {
  const filled = make("div");
  filled.style.width = `${(Math.min(Math.max(part, 0), 1) * 100).toFixed(1)}%`;
  return make("div", { class: high ? "meter high" : "meter", "aria-hidden": "true" }, filled);
}

function serviceBlock(service, rate, release) {
  const { workers, busy, queue, queue_max: most } = service;
  return make(
    "div",
    { class: "service" },
    make(
      "div",
      { class: "bar" },
      make("h4", {}, service.name, " ", make("span", { class: "small muted" }, service.route)),
      // Another one than the host's: it is being switched, or went back.
      service.release === release ? null : make("span", { class: "small muted release" }, service.release),
    ),
    make(
      "div",
      { class: "gauge" },
      make(
        "div",
        { class: "bar" },
        make("span", { class: "muted" }, "Workers busy"),
        workers ? make("b", {}, `${number(busy)} of ${number(workers)}`) : make("b", { class: "bad" }, "none runs"),
      ),
      workers <= MOST_CELLS
        ? make("div", { class: "workers", "aria-hidden": "true" }, ...Array.from({ length: workers }, (_, place) => make("i", { class: place < busy ? "busy" : null })))
        : meter(busy / workers),
    ),
    make(
      "div",
      { class: "gauge" },
      make(
        "div",
        { class: "bar" },
        make("span", { class: "muted" }, "Queue"),
        make("b", {}, most ? `${number(queue)} of ${number(most)}` : number(queue)),
      ),
      most ? meter(queue / most, queue >= most * 0.8) : null,
    ),
    make(
      "dl",
      { class: "counts" },
      ...[
        ["In flight", number(service.in_flight)],
        ["Per second", rate === undefined ? "–" : number(rate)],
        ["Requests", number(service.requests)],
        ["Rejected", number(service.rejected)],
      ].map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, value))),
    ),
  );
}

/** How long ago something was, by the clock of the host that tells of it; empty when that is not known. */
function since(then, now) {
  const moment = (value) => (typeof value === "number" ? value * 1000 : Date.parse(value));
  const passed = (moment(now) - moment(then)) / 1000;
  return Number.isFinite(passed) && passed >= 0 ? seconds(passed) : "";
}

/** Make one element's content like another's, and touch only what differs: what is being read or animated stays. */
function patch(element, wanted) {
  for (const { name } of [...element.attributes]) {
    if (name !== "id" && !wanted.hasAttribute(name)) element.removeAttribute(name);
  }
  for (const { name, value } of [...wanted.attributes]) {
    // The style is set through its own interface: the attribute is what the page's policy forbids.
    if (name === "style") element.style.width = wanted.style.width;
    else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  }
  const fresh = [...wanted.childNodes];
  while (element.childNodes.length > fresh.length) element.lastChild.remove();
  fresh.forEach((child, place) => {
    const present = element.childNodes[place];
    if (!present) element.append(child);
    else if (present.nodeName !== child.nodeName) present.replaceWith(child);
    else if (child.nodeType === Node.TEXT_NODE) {
      if (present.data !== child.data) present.data = child.data;
    } else patch(present, child);
  });
}

// ---- what the person does

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").textContent = paused ? "Go on" : "Pause";
  draw();
  poll();
});
document.addEventListener("visibilitychange", poll);
poll();
