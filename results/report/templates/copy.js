// Copies text to the clipboard, and says so if the browser does not allow it.
const copyText = (function () {
  "use strict";
  async function copy(text, button) {
    const before = button.dataset.label || button.textContent;
    button.dataset.label = before;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "The browser does not allow copying";
    }
    setTimeout(() => { button.textContent = before; }, 1600);
  }
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", () => {
      const lines = [...document.getElementById(button.dataset.copy).querySelectorAll("code")];
      copy(lines.map((line) => line.textContent).join("\n"), button);
    });
  }
  return copy;
})();
