#include "trireme/train/report.h"

namespace trireme::train {

// Colours are chosen to be told apart with the common colour blindnesses, on both backgrounds.
const char* const kReportStyle = R"css(
:root {
  --page: #f5f6f8; --surface: #ffffff; --ink: #17212b; --muted: #5d6b79; --faint: #8b97a3;
  --line: #e3e7ec; --grid: #e9edf1; --shadow: 0 1px 2px rgb(23 33 43 / 6%);
  --accent: #1d63c9; --second: #d2691e; --third: #12857c; --raw: #a9c4ec;
  --k-forward: #3f7fd9; --k-input: #e0862e; --k-weight: #c9a227; --k-recompute: #8a63d2; --k-loss: #16988b;
  --k-optimizer: #4b9e4b; --k-combine: #c2537a; --k-transfer: #2b8fb3; --k-other: #8894a0;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0e1318; --surface: #161d25; --ink: #e5ebf1; --muted: #97a4b1; --faint: #6d7a87;
    --line: #26303b; --grid: #222b35; --shadow: none;
    --accent: #6aa5f8; --second: #f0a15a; --third: #4cc5b8; --raw: #2f4a70;
    --k-forward: #5b97ec; --k-input: #eb9a4c; --k-weight: #d8b544; --k-recompute: #a585e6; --k-loss: #37b3a6;
    --k-optimizer: #6cb96c; --k-combine: #d9749a; --k-transfer: #5bb8d8; --k-other: #7a8794;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%;
}
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 48px; }
header { display: flex; gap: 16px; align-items: center; margin-bottom: 24px; }
h1 { font-size: 25px; line-height: 1.25; font-weight: 650; letter-spacing: -0.01em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 13px; font-weight: 600; letter-spacing: 0.07em; text-transform: uppercase; color: var(--muted); margin: 36px 0 12px; }
h3 { font-size: 15px; font-weight: 600; margin: 0; }
.subtitle { margin: 2px 0 0; color: var(--muted); }
.badge {
  display: inline-block; vertical-align: 4px; margin-left: 6px; padding: 1px 9px; border-radius: 99px; border: 1px solid var(--line);
  font-size: 12px; font-weight: 500; letter-spacing: 0; color: var(--muted); background: var(--surface); white-space: nowrap;
}
.badge.done { color: var(--third); border-color: currentColor; }
.mark { flex: none; width: 44px; height: 44px; border-radius: 11px; background: var(--accent); padding: 12px 9px; display: grid; gap: 4px; }
.mark i { display: block; height: 4px; border-radius: 2px; background: #fff; }
@media (prefers-color-scheme: dark) { .mark i { background: var(--page); } }
.mark i:nth-child(2) { margin-left: 5px; }
.mark i:nth-child(3) { margin-left: 10px; }
.card { background: var(--surface); border: 1px solid var(--line); border-radius: 12px; box-shadow: var(--shadow); padding: 16px 18px; margin: 0; min-width: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(136px, 1fr)); gap: 12px; }
.tile { background: var(--surface); border: 1px solid var(--line); border-radius: 12px; box-shadow: var(--shadow); padding: 14px 16px; }
.tile.strong { border-color: var(--accent); }
.tile .value { font-size: 25px; line-height: 1.2; font-weight: 620; letter-spacing: -0.015em; white-space: nowrap; }
.tile.strong .value { color: var(--accent); }
.tile .unit { font-size: 13px; font-weight: 500; color: var(--muted); margin-left: 5px; letter-spacing: 0; }
.tile .label { font-size: 13px; color: var(--ink); margin-top: 2px; }
.tile .note { font-size: 12px; color: var(--muted); }
.grid { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 12px; }
.wide { grid-column: 1 / -1; }
figcaption { margin-bottom: 6px; }
.caption { margin: 1px 0 0; font-size: 13px; color: var(--muted); }
figure { display: flex; flex-direction: column; }
.chart { position: relative; min-height: 190px; margin-top: auto; padding-top: 6px; }
.wide .chart { min-height: 320px; }
svg { display: block; width: 100%; overflow: visible; touch-action: pan-y; }
svg text { font-size: 11.5px; fill: var(--muted); }
svg .grid-line { stroke: var(--grid); stroke-width: 1; }
svg .axis { stroke: var(--line); stroke-width: 1; }
svg .curve { fill: none; stroke-width: 1.9; stroke-linejoin: round; stroke-linecap: round; }
svg .raw { fill: none; stroke: var(--raw); stroke-width: 1; stroke-linejoin: round; }
svg .reference { stroke: var(--faint); stroke-width: 1.2; stroke-dasharray: 4 4; }
svg .reference-label { fill: var(--muted); paint-order: stroke; stroke: var(--surface); stroke-width: 4px; }
svg .cross { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 2 3; }
svg .dot { stroke: var(--surface); stroke-width: 1.5; }
svg .end-label { font-weight: 600; paint-order: stroke; stroke: var(--surface); stroke-width: 4px; }
.keys, .legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 12.5px; color: var(--muted); }
.keys span, .legend span { display: inline-flex; align-items: center; gap: 6px; white-space: nowrap; }
.keys i { width: 16px; height: 3px; border-radius: 2px; display: inline-block; }
.legend i { width: 10px; height: 10px; border-radius: 3px; display: inline-block; }
.legend { margin: 4px 0 10px; }
.legend b { font-weight: 500; color: var(--faint); }
#timeline { display: block; width: 100%; cursor: grab; touch-action: pan-y; }
#timeline.dragging { cursor: grabbing; }
#tip {
  position: fixed; z-index: 9; left: 0; top: 0; pointer-events: none; opacity: 0; transition: opacity 80ms; max-width: min(340px, 90vw);
  background: var(--ink); color: var(--page); padding: 7px 10px; border-radius: 8px; font-size: 12.5px; line-height: 1.45;
}
#tip b { font-weight: 600; }
#tip table { border-spacing: 0; }
#tip td { padding: 0; white-space: nowrap; }
#tip td + td { padding-left: 14px; text-align: right; }
#tip i { display: inline-block; width: 8px; height: 8px; border-radius: 2px; margin-right: 6px; }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 12px; }
pre { font: 12.5px/1.55 var(--mono); margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.sample { max-height: 420px; overflow: auto; }
.sample .prompt { color: var(--accent); font-weight: 600; }
dl { margin: 0; display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 2px 36px; }
dl div { display: flex; justify-content: space-between; gap: 16px; padding: 5px 0; border-bottom: 1px solid var(--grid); min-width: 0; }
dt { color: var(--muted); flex: none; }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--muted); }
.toml { margin-top: 12px; overflow-x: auto; white-space: pre; overflow-wrap: normal; }
.toml i { color: var(--faint); font-style: normal; }
.toml b { color: var(--accent); }
.toml em { font-style: normal; color: var(--second); }
.experts { display: grid; gap: 3px; margin-top: 10px; }
.experts-row { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: 3px; }
.experts-row i { height: 18px; border-radius: 3px; background: color-mix(in srgb, var(--accent) calc(100% * var(--share)), var(--line)); }
footer { margin-top: 36px; font-size: 13px; color: var(--muted); }
code { font: 0.93em var(--mono); }
.noscript { text-align: center; color: var(--muted); }
@media (max-width: 900px) { .grid { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media (max-width: 620px) {
  main { padding: 20px 14px 32px; }
  .grid { grid-template-columns: minmax(0, 1fr); }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  .tile .value { font-size: 21px; }
  .card { padding: 14px; }
  .wide .chart { min-height: 240px; }
  h1 { font-size: 21px; }
}
@media print { body { background: #fff; } .card, .tile { box-shadow: none; break-inside: avoid; } }
)css";

}  // namespace trireme::train
