// In `gr.HTML`: a button tells the page which item was chosen.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-item]");
  if (button) trigger("select", { item: button.dataset.item });
});
