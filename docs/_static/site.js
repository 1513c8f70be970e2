// What scrolls sideways can be reached, and so scrolled, with the keyboard.
addEventListener("load", () => {
  for (const box of document.querySelectorAll("pre, .mermaid, .table-wrapper"))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
});
