// Classic, in the head, before the first paint: the page never flashes in the theme that was not chosen.
"use strict";
(() => {
  try {
    const chosen = localStorage.getItem("thawbox.theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    /* storage is off: the system's theme it is */
  }
})();
