// What both pages use: elements, numbers in words, the clipboard, problems.

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/**
 * An element with attributes and children. Text goes in as text, never as HTML: it comes from anybody.
 *
 * @param {string} name Tag, in the namespace of SVG when it begins with "svg:".
 * @param {object} attributes Those that are null, undefined or false are left out.
 */
export function make(name, attributes = {}, ...children) {
  const svg = name.startsWith("svg:");
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4))
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Fill a list of terms; pairs without a value are left out. */
export function describe(list, pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  list.replaceChildren(...shown.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, String(value))]));
}

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

/** A number with thousands apart. */
export const number = (value) => plain.format(value);

/** Bytes in the largest unit that fits; as elsewhere in the fleet, a MB has 1024 times 1024 of them. */
export function bytes(count) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${unit && count < 10 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

/** Milliseconds in words. */
export function milliseconds(value) {
  if (value >= 10000) return `${(value / 1000).toFixed(1)} s`;
  if (value >= 1000) return `${(value / 1000).toFixed(2)} s`;
  return `${value >= 100 ? Math.round(value) : value.toFixed(1)} ms`;
}

/** Seconds in words, in the largest unit that fits. */
export function seconds(value) {
  if (value < 90) return `${Math.max(0, Math.round(value))} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  return value < 172800 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86400)} days`;
}

/** Put text into the clipboard; says whether it got there. */
export async function copy(text) {
  // Only pages from https or this machine itself get the clipboard's own interface.
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Refused by the browser: the older way is left.
    }
  }
  const area = make("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  try {
    return document.execCommand("copy");
  } finally {
    area.remove();
    focused?.focus();
  }
}

/**
 * What an answer that is no success says of itself.
 *
 * @returns {{title: string, detail: string, kind: string, requestId: string}}
 */
export function problemOf(status, body, requestId) {
  let members = {};
  try {
    members = JSON.parse(body) ?? {};
  } catch {
    // Not from the fleet: a proxy in front may answer with HTML.
  }
  const text = (value) => (typeof value === "string" ? value : "");
  return {
    title: text(members.title) || `Unexpected answer ${status}`,
    detail: text(members.detail) || "The answer is not one of the fleet's own. Is there a proxy in front of it?",
    kind: text(members.type).split(":").pop(),
    requestId: text(members.request_id) || requestId || "",
  };
}
