// Small charts of one series over time.

import { h } from "./dom.js";

const [WIDTH, HEIGHT, TOP] = [600, 96, 10];

/**
 * Draws points `[ms, value]` between two times. A gap of more than `gap` milliseconds breaks the line: nothing is known there.
 */
export function chart(name, points, from, to, write, gap) {
  const highest = points.reduce((most, [, value]) => Math.max(most, value), 0);
  const x = (at) => ((at - from) / (to - from)) * WIDTH;
  const y = (value) => HEIGHT - (highest === 0 ? 0 : (value / highest) * (HEIGHT - TOP)) - 1;
  const runs = [];
  let before = -Infinity;
  for (const [at, value] of points) {
    if (at - before > gap) runs.push([]);
    runs.at(-1).push([x(at).toFixed(1), y(value).toFixed(1)]);
    before = at;
  }
  const line = runs.map((run) => `M${run.map((point) => point.join(" ")).join("L")}${run.length === 1 ? "h2" : ""}`).join("");
  const area = runs.map((run) => `M${run[0][0]} ${HEIGHT}L${run.map((point) => point.join(" ")).join("L")}L${run.at(-1)[0]} ${HEIGHT}Z`).join("");
  const latest = points.length ? write(points.at(-1)[1]) : "–";
  const said = `${name}: now ${latest}, at most ${write(highest)}`;
  const svg = h("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": said },
    h("title", {}, said), area && h("path", { class: "area", d: area }), line && h("path", { class: "line", d: line }));
  return h("figure", {}, h("figcaption", {}, name, h("span", {}, h("b", {}, latest), ` · most ${write(highest)}`)), svg);
}
