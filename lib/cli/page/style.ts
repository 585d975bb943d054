/** The page's look. Colours are picked for contrast on their own background, so dark is not light turned around. */
export const style = `
:root {
  color-scheme: light dark;
  --ground: #ffffff; --panel: #f6f7f9; --text: #1c2128; --quiet: #5b6470; --line: #d9dde3; --grid: #e6e9ee;
  --exact: #1c2128; --front: #f2b84b;
  --series-0: #2f5fd0; --series-1: #c2410c; --series-2: #14806f; --series-3: #8a3fc4;
  --series-4: #b8266e; --series-5: #7a6a00; --series-6: #3d7d1e; --series-7: #7c5a44;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171c; --panel: #1b1f26; --text: #e4e7ec; --quiet: #9aa4b2; --line: #343b46; --grid: #262c35;
    --exact: #e4e7ec; --front: #b08428;
    --series-0: #82a6ff; --series-1: #ff9a62; --series-2: #4fd1ba; --series-3: #c79bff;
    --series-4: #ff8cc0; --series-5: #dcc94a; --series-6: #93d46a; --series-7: #d3ab92;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 24px 20px 40px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 17px; margin: 0 0 2px; }
p { margin: 0 0 8px; }
.quiet { color: var(--quiet); }
.note { color: var(--quiet); font-size: 13px; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(155px, 1fr)); gap: 12px; margin: 18px 0; padding: 0; list-style: none; }
.answers li { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
.answers b { display: block; font-size: 20px; line-height: 1.3; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 16px; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; margin: 0; min-width: 0; }
section.whole { margin-top: 16px; }
svg.chart { display: block; width: 100%; height: auto; max-width: 680px; margin: 6px auto 0; font-size: 12px; }
svg.narrow { display: none; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 8px 0 0; padding: 0; list-style: none; font-size: 13px; }
.legend li { display: flex; align-items: center; gap: 5px; }
.legend svg { flex: none; overflow: visible; }
.grid { stroke: var(--grid); }
.axis { stroke: var(--line); }
.tick { fill: var(--quiet); font-size: 11px; font-variant-numeric: tabular-nums; }
.title { fill: var(--quiet); font-size: 12px; }
.point { font-size: 11px; paint-order: stroke; stroke: var(--panel); stroke-width: 3px; stroke-linejoin: round; fill: var(--series); font-variant-numeric: tabular-nums; }
.mark path, .legend path { fill: var(--series); stroke: var(--panel); stroke-width: 1; }
.hollow path, .hollow circle { fill: none; stroke: var(--series, var(--quiet)); stroke-width: 1.4; }
.knob { fill: none; stroke: var(--series); stroke-width: 1.2; opacity: 0.55; }
.line { fill: none; stroke: var(--series); stroke-width: 1.8; }
path.front { fill: none; stroke: var(--front); stroke-width: 7; stroke-linejoin: round; stroke-linecap: round; opacity: 0.55; }
li.front line { stroke: var(--front); stroke-width: 7; opacity: 0.55; }
.exact line { stroke: var(--exact); stroke-dasharray: 5 4; }
.exact text { fill: var(--exact); font-weight: 600; }
.series-exact { --series: var(--exact); }
${Array.from({ length: 8 }, (_, index) => `.series-${index} { --series: var(--series-${index}); }`).join('\n')}
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(205px, 1fr)); gap: 14px; margin-top: 10px; }
figure { margin: 0; }
figure img { display: block; width: 100%; aspect-ratio: 1; image-rendering: pixelated; border: 1px solid var(--line); }
figcaption { font-size: 13px; margin-top: 4px; line-height: 1.35; }
.ramp { display: flex; align-items: center; flex-wrap: wrap; gap: 8px; margin-top: 10px; font-size: 13px; color: var(--quiet); }
.ramp img { width: 180px; height: 12px; image-rendering: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; margin-top: 6px; }
th, td { padding: 4px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--quiet); font-weight: 600; }
td:first-child, th:first-child { text-align: left; }
#ranks th, #ranks td { padding: 4px 6px; font-size: 12.5px; }
#ranks th { white-space: normal; vertical-align: bottom; }
table + .note, .scroll + .note { margin-top: 10px; }
tr.best td:first-child::before { content: ""; display: inline-block; width: 9px; height: 9px; border-radius: 2px; background: var(--front); margin-right: 7px; }
tr td:first-child { padding-left: 6px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 16px; margin: 6px 0 0; font-size: 13.5px; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 560px) {
  main { padding: 16px 10px 28px; }
  section { padding: 12px 8px; }
  svg.wide { display: none; }
  svg.narrow { display: block; }
  .maps { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); }
  dl { grid-template-columns: 1fr; }
  dt { margin-top: 6px; }
}
`;
