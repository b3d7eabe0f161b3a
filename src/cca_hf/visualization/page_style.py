"""The style sheet of the report: light and dark by the reader's setting, one column on a phone, printable."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fafaf9; --card: #ffffff; --ink: #1c1917; --muted: #6b6862; --line: #e7e5e4; --track: #f0eeec;
  --accent: #f59e0b; --accent-ink: #92400e; --accent-soft: #fef3c7; --base1: #cbd5e1; --base2: #94a3b8;
  --base3: #64748b; --right: #15803d; --wrong: #dc2626; --unknown: #94a3b8; --chance: #be123c;
  --shadow: 0 1px 3px rgb(28 25 23 / 8%);
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0c0e14; --card: #151922; --ink: #eceae6; --muted: #a09c94; --line: #272d3a; --track: #1e2430;
    --accent: #fbbf24; --accent-ink: #fde68a; --accent-soft: #3a2c0b; --base1: #475569; --base2: #6b7a92;
    --base3: #94a3b8; --right: #4ade80; --wrong: #f87171; --unknown: #64748b; --chance: #fb7185; --shadow: none;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: clamp(1.6rem, 1.2rem + 2vw, 2.3rem); line-height: 1.15; letter-spacing: -.02em; margin: 0 0 8px; }
h2 { font-size: 1.3rem; letter-spacing: -.01em; margin: 56px 0 4px; }
h3 { font-size: .95rem; margin: 0; }
p { margin: 0 0 12px; }
.lead, .note { color: var(--muted); max-width: 70ch; }
.note { font-size: .9rem; }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, "Liberation Mono", monospace; overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; box-shadow: var(--shadow); }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 24px 0 0; }
.tile { padding: 14px 16px; }
.tile b {
  display: block; font-size: 1.75rem; line-height: 1.2; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums;
}
.tile.main b { color: var(--accent-ink); }
.tile.main { background: var(--accent-soft); border-color: transparent; }
.tile span { color: var(--muted); font-size: .85rem; }

.legend {
  display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 12px 0 16px; font-size: .88rem; color: var(--muted);
}
.legend i { display: inline-block; width: 18px; height: 10px; border-radius: 3px; margin-right: 7px; }
.legend i.chance { width: 3px; height: 14px; vertical-align: -2px; background: var(--chance); }
.bars { padding: 18px 20px; display: grid; gap: 14px; }
.group { display: grid; grid-template-columns: minmax(90px, 150px) 1fr; gap: 14px; align-items: center; }
.group > div:first-child { text-align: right; overflow-wrap: anywhere; font-size: .95rem; }
.group.mean { border-top: 1px solid var(--line); padding-top: 14px; font-weight: 600; }
.tracks { position: relative; margin-right: 46px; }
.track { position: relative; height: 14px; background: var(--track); border-radius: 4px; margin: 3px 0; }
.track i { position: absolute; inset: 0 auto 0 0; border-radius: 4px; }
.track em {
  position: absolute; left: 100%; top: 50%; transform: translateY(-50%); padding-left: 8px; font-style: normal;
  font-weight: 400; font-size: .8rem; color: var(--muted); font-variant-numeric: tabular-nums;
}
.track.accent em { color: var(--ink); font-weight: 700; }
.tracks > u {
  position: absolute; top: -2px; bottom: -2px; width: 3px; margin-left: -1.5px; background: var(--chance);
  border-radius: 2px;
}
i.c0 { background: var(--base1); }
i.c1 { background: var(--base2); }
i.c2 { background: var(--base3); }
i.accent { background: var(--accent); }

details { margin-top: 12px; }
summary { cursor: pointer; color: var(--muted); font-size: .9rem; padding: 4px 0; }
summary:focus-visible { outline: 2px solid var(--accent); border-radius: 4px; }
.scroll { overflow-x: auto; margin-top: 8px; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 7px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, th.name { text-align: left; }
td.name { text-align: left; }
thead th { color: var(--muted); font-weight: 500; }
tr:last-child td, tr:last-child th { border-bottom: 0; }
td small { color: var(--muted); }
tr.mean th, tr.mean td { font-weight: 600; }

.query { display: grid; grid-template-columns: 190px 1fr; gap: 22px; padding: 20px; margin-top: 18px; }
.query aside { position: sticky; top: 16px; align-self: start; }
.query aside img { width: 100%; border-radius: 10px; display: block; }
.chips { display: flex; flex-wrap: wrap; gap: 5px; margin-top: 10px; }
.chips span {
  background: var(--track); border-radius: 999px; padding: 2px 10px; font-size: .78rem; color: var(--muted);
}
.chips b { color: var(--ink); font-weight: 600; }
.row + .row { margin-top: 14px; padding-top: 12px; border-top: 1px solid var(--line); }
.row header { display: flex; flex-wrap: wrap; gap: 0 10px; align-items: baseline; margin-bottom: 6px; }
.row header span { color: var(--muted); font-size: .85rem; }
.row header span:last-child { margin-left: auto; }
.strip { display: grid; grid-template-columns: repeat(8, minmax(0, 1fr)); gap: 8px; }
figure { margin: 0; min-width: 0; }
figure img {
  width: 100%; aspect-ratio: 1; object-fit: contain; display: block; border-radius: 8px;
  background: var(--track);
}
figcaption {
  font-size: .74rem; line-height: 1.3; margin-top: 3px; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap;
}
.right img { outline: 3px solid var(--right); outline-offset: -3px; } .right figcaption { color: var(--right); }
.wrong img { outline: 3px solid var(--wrong); outline-offset: -3px; } .wrong figcaption { color: var(--wrong); }
.unknown img { outline: 3px solid var(--unknown); outline-offset: -3px; }
.unknown figcaption { color: var(--muted); }
.looks figcaption { color: var(--accent-ink); }

.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 16px; margin-top: 16px; }
.curve { padding: 14px 16px; }
.curve svg { width: 100%; height: auto; display: block; margin-top: 6px; overflow: visible; }
.curve line { stroke: var(--line); } .curve text { fill: var(--muted); font-size: 11px; }
.curve path { fill: none; stroke: var(--accent); stroke-width: 2.5; stroke-linejoin: round; stroke-linecap: round; }
.curve circle { fill: var(--accent); }
footer {
  margin-top: 56px; padding-top: 18px; border-top: 1px solid var(--line); color: var(--muted);
  font-size: .85rem;
}

@media (max-width: 720px) {
  main { padding: 22px 14px 48px; }
  .query { grid-template-columns: 1fr; padding: 14px; gap: 16px; }
  .query aside { position: static; display: grid; grid-template-columns: 110px 1fr; gap: 14px; align-items: start; }
  .chips { margin-top: 0; }
  .strip { grid-template-columns: repeat(4, minmax(0, 1fr)); }
  .group { grid-template-columns: 1fr; gap: 3px; }
  .group > div:first-child { text-align: left; font-weight: 600; }
  .bars { padding: 14px; }
}
@media print { .card { box-shadow: none; break-inside: avoid; } }
"""
