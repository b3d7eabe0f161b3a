"""The style sheet of the Space's own parts, in Gradio's colours, so that light and dark are the reader's choice."""

STYLE = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
#cca-head h1 { font-size: clamp(1.5rem, 1.2rem + 1.6vw, 2.1rem); font-weight: 700; line-height: 1.15; margin: 0; }
#cca-head p { color: var(--body-text-color-subdued); margin: 6px 0 0; max-width: 75ch; overflow-wrap: anywhere; }
#cca-head code { font-size: .9em; }
#cca-head .html-container, #cca-examples .html-container, #cca-results .html-container { padding: 0; }
#cca-head h1, #cca-found { color: var(--body-text-color); }
#cca-picture img { width: 100%; height: 100%; object-fit: contain; }
#cca-ask { position: sticky; top: 12px; align-self: flex-start; }

.cca-label { font-size: .88rem; font-weight: 500; color: var(--block-title-text-color); margin: 2px 0 8px; }
.cca-examples { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 6px; }

#cca-found { font-size: 1.15rem; font-weight: 600; margin: 0 0 10px; overflow-wrap: anywhere; }
#cca-found:focus-visible { outline: 2px solid var(--primary-500); outline-offset: 4px; border-radius: 4px; }
.cca-card {
  display: grid; grid-template-columns: 176px minmax(0, 1fr); gap: 10px 16px; padding: 14px 16px 16px;
  margin-bottom: 14px; background: var(--block-background-fill); border: 1px solid var(--border-color-primary);
  border-radius: 14px;
}
.cca-card.cca-mixed { grid-template-columns: minmax(0, 1fr); border-color: var(--primary-400); }
.cca-card h3 {
  grid-column: 1 / -1; margin: 0; font-size: 1rem; font-weight: 600; color: var(--body-text-color);
  overflow-wrap: anywhere;
}
.cca-card h3 span {
  margin-left: 6px; padding: 1px 10px; border-radius: 999px; font-size: .8rem; font-weight: 500;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary);
  color: var(--body-text-color-subdued);
}
.cca-attention { margin: 0; }
.cca-attention img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 10px; background: #17131f; }
.cca-attention figcaption { font-size: .78rem; color: var(--body-text-color-subdued); margin-top: 4px; }
.cca-strip {
  list-style: none; margin: 0; padding: 0; display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 10px;
}
.cca-strip li { margin: 0; padding: 0; min-width: 0; }
.cca-picture {
  display: block; width: 100%; padding: 0; margin: 0; border: 0; background: none; text-align: left; cursor: pointer;
  color: inherit; border-radius: 8px;
}
.cca-picture img, .cca-lost {
  display: block; width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 8px; margin: 0;
  background: var(--background-fill-secondary); transition: box-shadow .12s;
}
.cca-lost { display: grid; place-content: center; font-size: .7rem; text-align: center; }
.cca-picture:hover img { box-shadow: 0 0 0 2px var(--primary-400); }
.cca-picture:focus-visible { outline: 3px solid var(--primary-500); outline-offset: 2px; }
.cca-picture > span:not(.cca-lost) {
  display: flex; justify-content: space-between; gap: 4px; margin-top: 3px; font-size: .76rem; line-height: 1.35;
}
.cca-picture b { font-weight: 500; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.cca-picture i {
  font-style: normal; font-weight: 400; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums;
}
.cca-alike { color: #15803d; font-weight: 700; }
.dark .cca-alike { color: #4ade80; }
.cca-hint { color: var(--body-text-color-subdued); margin: 0; }
.cca-problem {
  margin: 0; padding: 12px 16px; border-radius: 12px; border: 1px solid var(--error-border-color);
  background: var(--error-background-fill); color: var(--error-text-color); overflow-wrap: anywhere;
}

@media (max-width: 767px) {
  #cca-ask { position: static; }
  .cca-card { grid-template-columns: minmax(0, 1fr); padding: 12px; }
  .cca-attention { display: grid; grid-template-columns: 132px minmax(0, 1fr); gap: 12px; align-items: end; }
  .cca-attention figcaption { margin: 0; }
  .cca-strip { gap: 6px; }
  .cca-picture > span:not(.cca-lost) { display: block; font-size: .7rem; }
  .cca-picture b { display: block; }
}
"""
