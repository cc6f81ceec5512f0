#include "trireme/train/report.h"

namespace trireme::train {

// The timeline of one step on a canvas: rows of blocks, and memory under them on the same clock.
const char* const kReportTimelineScript = R"js(
(function () {
  const canvas = document.getElementById("timeline");
  if (!canvas) return;
  const { kinds, lanes, memory } = data.timeline;
  // One name: there is one curve.
  const memoryNames = data.timeline.memory_names || ["measured", "predicted"];
  const colourOf = kind => "--k-" + (
    /recompute/.test(kind) ? "recompute" : /loss/.test(kind) ? "loss" : /backward.*weight/.test(kind) ? "weight" :
    /backward/.test(kind) ? "input" : /forward/.test(kind) ? "forward" : /optimizer/.test(kind) ? "optimizer" :
    /combine/.test(kind) ? "combine" :
    /send|receive|reduce-|gather-|offload|reload/.test(kind) ? "transfer" : "other");
  const total = {};
  for (const event of lanes[0].events) total[event[2]] = (total[event[2]] || 0) + event[1];
  const stepUs = Math.max(...lanes.map(l => l.events.length ? Math.max(...l.events.map(e => e[0] + e[1])) : 0));
  const duration = us => us >= 1e6 ? (us / 1e6).toPrecision(4) + " s" : us >= 1e3 ? (us / 1e3).toPrecision(3) + " ms" : us.toFixed(us < 10 ? 1 : 0) + " µs";
  document.getElementById("legend").innerHTML = kinds.map((kind, k) => [kind, k, total[k] || 0])
    .sort((a, b) => b[2] - a[2]).filter(entry => entry[2] > 0)
    .map(([kind, , us]) => `<span><i style="background:var(${colourOf(kind)})"></i>${kind} <b>${(100 * us / stepUs).toFixed(us / stepUs < 0.1 ? 1 : 0)} %</b></span>`).join("");

  const kLane = 34, kGap = 8, kTop = 6, kMemory = memory.length ? 150 : 0, kAxis = 26;
  const height = kTop + lanes.length * (kLane + kGap) + (kMemory ? kMemory + 26 : 0) + kAxis;
  let from = 0, to = stepUs, left = 0, width = 0, palette = {};
  const maxBytes = memory.reduce((peak, p) => Math.max(peak, p[1], p[2]), 1) * 1.08;
  const px = us => left + (us - from) / (to - from) * (width - left - 4);
  const at = x => from + (x - left) / (width - left - 4) * (to - from);

  function readPalette() {
    const style = getComputedStyle(document.documentElement);
    palette = name => style.getPropertyValue(name).trim();
  }
  function draw() {
    width = canvas.clientWidth;
    if (!width) return;
    readPalette();
    const ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.height = height + "px";
    const g = canvas.getContext("2d");
    g.scale(ratio, ratio);
    g.clearRect(0, 0, width, height);
    const family = getComputedStyle(document.body).fontFamily;
    g.font = "12px " + family;
    g.textBaseline = "middle";
    left = width > 620 ? 112 : 76;
    const plotWidth = width - left - 4;
    const ticks = niceTicks(from, to, Math.max(2, Math.floor(width / 120)));
    g.strokeStyle = palette("--grid");
    g.fillStyle = palette("--muted");
    g.textAlign = "center";
    for (const t of ticks) {
      const x = Math.round(px(t)) + 0.5;
      g.beginPath(); g.moveTo(x, kTop); g.lineTo(x, height - kAxis + 4); g.stroke();
      g.fillText(duration(t), Math.min(Math.max(x, left + 16), width - 28), height - 10);
    }
    lanes.forEach((lane, row) => {
      const y = kTop + row * (kLane + kGap);
      g.fillStyle = palette("--muted");
      g.textAlign = "right";
      const words = lane.name.split(" · ");
      words.forEach((word, i) => g.fillText(word, left - 10, y + kLane / 2 + (i - (words.length - 1) / 2) * 14));
      g.save();
      g.beginPath(); g.rect(left, y, plotWidth, kLane); g.clip();
      g.textAlign = "left";
      for (const [start, length, kind, name] of lane.events) {
        if (start + length < from || start > to) continue;
        const x = px(start), w = Math.max(0.4, px(start + length) - x);
        g.fillStyle = palette(colourOf(kinds[kind]));
        g.fillRect(x, y, w > 4 ? w - 0.8 : w, kLane);
        if (w > 60) {
          g.fillStyle = "#fff";
          g.save();
          g.beginPath(); g.rect(x, y, w - 3, kLane); g.clip();
          g.font = "11.5px " + family;
          g.fillText(name, Math.max(x, left) + 5, y + kLane / 2);
          g.restore();
        }
      }
      g.restore();
    });
    if (kMemory) {
      const top = kTop + lanes.length * (kLane + kGap) + 20, bottom = top + kMemory;
      const py = v => bottom - v / maxBytes * kMemory;
      g.font = "12px " + family;
      for (const t of niceTicks(0, maxBytes, 3)) {
        g.strokeStyle = palette("--grid");
        g.beginPath(); g.moveTo(left, Math.round(py(t)) + 0.5); g.lineTo(width - 4, Math.round(py(t)) + 0.5); g.stroke();
        g.fillStyle = palette("--muted");
        g.textAlign = "right";
        g.fillText(t === 0 ? "0" : bytes(t), left - 10, py(t));
      }
      g.save();
      g.beginPath(); g.rect(left, top - 4, plotWidth, kMemory + 5); g.clip();
      const stairs = column => {
        g.beginPath();
        g.moveTo(px(0), py(memory[0][column]));
        let previous = memory[0][column];
        for (const point of memory) {
          g.lineTo(px(point[0]), py(previous));
          g.lineTo(px(point[0]), py(point[column]));
          previous = point[column];
        }
        g.lineTo(px(stepUs), py(previous));
      };
      stairs(1);
      g.strokeStyle = palette("--accent");
      g.lineWidth = 1.4;
      g.stroke();
      g.lineTo(px(stepUs), bottom); g.lineTo(px(0), bottom); g.closePath();
      g.globalAlpha = 0.16;
      g.fillStyle = palette("--accent");
      g.fill();
      g.globalAlpha = 1;
      if (memoryNames.length > 1) {
        stairs(2);
        g.setLineDash([4, 3]);
        g.strokeStyle = palette("--second");
        g.stroke();
        g.setLineDash([]);
      }
      g.lineWidth = 1;
      g.restore();
      g.textAlign = "left";
      g.fillStyle = palette("--accent");
      g.fillText("memory, " + memoryNames[0], left + 4, top - 11);
      if (memoryNames.length > 1) {
        const shift = g.measureText("memory, " + memoryNames[0]).width;
        g.fillStyle = palette("--second");
        g.fillText("- - " + memoryNames[1], left + 18 + shift, top - 11);
      }
    }
  }
  function find(event) {
    const box = canvas.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    if (x < left) return null;
    const time = at(x), row = Math.floor((y - kTop) / (kLane + kGap));
    if (row >= 0 && row < lanes.length) {
      const slack = (to - from) / width;
      return lanes[row].events.find(e => e[0] <= time + slack && time <= e[0] + Math.max(e[1], slack)) || null;
    }
    if (!kMemory || y < kTop + lanes.length * (kLane + kGap) + 10 || y > height - kAxis) return null;
    let found = memory[0];
    for (const point of memory) { if (point[0] > time) break; found = point; }
    return { memory: found };
  }
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    const centre = at(event.clientX - canvas.getBoundingClientRect().left), factor = Math.exp(event.deltaY * 0.0015);
    let span = Math.min(stepUs, Math.max(5, (to - from) * factor));
    from = Math.max(0, Math.min(stepUs - span, centre - (centre - from) / (to - from) * span));
    to = from + span;
    draw();
  }, { passive: false });
  let drag = null;
  canvas.addEventListener("pointerdown", event => { drag = { x: event.clientX, from, to }; canvas.setPointerCapture(event.pointerId); canvas.classList.add("dragging"); });
  canvas.addEventListener("pointerup", () => { drag = null; canvas.classList.remove("dragging"); });
  canvas.addEventListener("pointermove", event => {
    if (drag) {
      const span = drag.to - drag.from, moved = (drag.x - event.clientX) / (width - left) * span;
      from = Math.max(0, Math.min(stepUs - span, drag.from + moved));
      to = from + span;
      draw();
      return;
    }
    const hit = find(event);
    if (!hit) { hideTip(); return; }
    if (hit.memory) {
      const [time, ...held] = hit.memory;
      showTip(`at ${duration(time)}<table>` + memoryNames.map((name, i) =>
              `<tr><td>${escapeHtml(name)}</td><td><b>${bytes(held[i])}</b></td></tr>`).join("") + "</table>", event.clientX, event.clientY);
    } else {
      showTip(`<b>${escapeHtml(hit[3])}</b><br>${duration(hit[1])}, from ${duration(hit[0])}`, event.clientX, event.clientY);
    }
  });
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("dblclick", () => { from = 0; to = stepUs; draw(); });
  new ResizeObserver(draw).observe(canvas.parentElement);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
)js";

}  // namespace trireme::train
