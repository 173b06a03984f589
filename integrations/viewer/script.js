// The page reads without this script; it adds arms to hide, a choice of seeds, values at the pointer.
"use strict";
document.body.classList.add("scripted");

function each(selector, act, root) { (root || document).querySelectorAll(selector).forEach(act); }

each("[data-toggle]", function (box) {
  function apply() {
    each('[data-arm="' + box.dataset.toggle + '"]', function (part) {
      part.style.display = box.checked ? "" : "none";
    });
  }
  box.addEventListener("change", apply);
  apply(); // a browser keeps the boxes of a page that is loaded again
});

const chosen = document.getElementById("place");
if (chosen) {
  const apply = function () {
    each(".place", function (part) { part.hidden = part.dataset.place !== chosen.value; });
  };
  chosen.addEventListener("change", apply);
  apply();
  window.addEventListener("beforeprint", function () { each(".place", function (p) { p.hidden = false; }); });
  window.addEventListener("afterprint", apply);
}

function numbers(text) { return text.split(" ").map(Number); }

function short(value) {
  const size = Math.abs(value);
  return value !== 0 && (size < 0.001 || size >= 10000) ? value.toExponential(2) : String(+value.toPrecision(3));
}

each("svg[data-x]", function (picture) {
  const [x0, x1, y0, y1] = numbers(picture.dataset.box);
  const [xLow, xHigh] = numbers(picture.dataset.x);
  const [yLow, yHigh] = numbers(picture.dataset.y);
  const log = picture.dataset.log === "1";
  const said = picture.parentElement.querySelector("output");
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cursor.setAttribute("class", "cursor");
  cursor.setAttribute("y1", y1);
  cursor.setAttribute("y2", y0);
  let at = null;
  let curves = null;

  function valueAt(y) {
    const share = (y - y0) / (y1 - y0);
    return log ? yLow * Math.pow(yHigh / yLow, share) : yLow + share * (yHigh - yLow);
  }
  function read() { // once, when the plot is first pointed at
    curves = [];
    each("polyline.mean", function (line) {
      const points = Array.from(line.points, function (p) { return [p.x, p.y]; });
      curves.push({ line: line, points: points });
    }, picture);
  }
  function show(x) {
    if (!curves) { read(); }
    at = Math.min(x1, Math.max(x0, x));
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    picture.appendChild(cursor);
    const step = xLow + (at - x0) / (x1 - x0) * (xHigh - xLow);
    said.replaceChildren("step " + Math.round(step) + "  ");
    curves.forEach(function (curve) {
      if (curve.line.style.display === "none") { return; }
      const near = curve.points.reduce(function (best, point) {
        return Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best;
      });
      if (Math.abs(near[0] - at) > 0.05 * (x1 - x0)) { return; } // it ended before
      const item = document.createElement("span");
      const mark = document.createElement("i");
      mark.className = "chip " + curve.line.getAttribute("class").replace("mean", "");
      item.append(mark, short(valueAt(near[1])));
      item.title = curve.line.dataset.label;
      said.append(item);
    });
  }
  function clear() { cursor.remove(); said.replaceChildren(); at = null; }

  picture.addEventListener("pointermove", function (event) {
    const box = picture.getBoundingClientRect();
    show((event.clientX - box.left) * picture.viewBox.baseVal.width / box.width);
  });
  picture.addEventListener("pointerleave", clear);
  picture.addEventListener("blur", clear);
  picture.addEventListener("keydown", function (event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) { return; }
    event.preventDefault();
    show((at === null ? (move > 0 ? x0 - 1 : x1 + 1) : at) + move * (x1 - x0) / 50);
  });
});
