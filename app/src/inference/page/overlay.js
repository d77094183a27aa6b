// The lines of an answer over its image, as SVG in the image's own pixels: the browser scales both alike.

import { byId, make } from "./common.js";

/** Take everything off the image. */
export function forget() {
  byId("overlay").replaceChildren();
  byId("image").removeAttribute("src");
}

/**
 * Draw a box, and the text in it, for each line.
 *
 * @param {{width: number, height: number}} size Of the image, in pixels.
 * @param {{text: string, score: number, box: number[][]}[]} lines Corners from the upper left one on, clockwise.
 * @param {(place: number) => void} chosen Called with a line's place when its box is clicked.
 */
export function lay(size, lines, chosen) {
  const overlay = byId("overlay");
  overlay.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
  overlay.replaceChildren(...lines.map((line, place) => group(line, place, chosen)));
}

/** Make the box of a line stand out; with -1 none. */
export function mark(place, passing = false) {
  const name = passing ? "passed" : "chosen";
  [...byId("overlay").children].forEach((one, number) => one.classList.toggle(name, number === place));
}

function group(line, place, chosen) {
  const box = make("svg:polygon", { points: line.box.map((corner) => corner.join(",")).join(" ") });
  const one = make("svg:g", { class: line.score < 0.8 ? "unsure" : "sure" }, box, words(line), make("svg:title", {}, line.text));
  one.addEventListener("click", () => chosen(place));
  return one;
}

/** The text of a line, as large as its box, along its upper edge. */
function words(line) {
  let [start, end, , below] = line.box;
  // A box that stands upright holds a line that runs down or up, which the answer does not tell: it is drawn as
  // one that runs down, from the upper right corner on.
  if (distance(start, below) > 1.5 * distance(start, end) && line.text.length > 1) {
    [start, end, , below] = [line.box[1], line.box[2], line.box[3], line.box[0]];
  }
  const width = distance(start, end);
  const height = distance(start, below);
  const [cos, sin] = [(end[0] - start[0]) / (width || 1), (end[1] - start[1]) / (width || 1)];
  return make(
    "svg:text",
    {
      transform: `matrix(${cos} ${sin} ${-sin} ${cos} ${start[0]} ${start[1]})`,
      x: width * 0.01,
      y: height * 0.76,
      "font-size": height * 0.72,
      textLength: width * 0.98,
      lengthAdjust: "spacingAndGlyphs",
    },
    line.text,
  );
}

const distance = (one, other) => Math.hypot(one[0] - other[0], one[1] - other[1]);
