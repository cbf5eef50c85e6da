// Sorts a table by the column whose heading is clicked; a second click reverses the order.
(function () {
  "use strict";
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, index) => {
      const button = heading.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const descending = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const value = (row) => {
          const text = row.cells[index].dataset.value;
          return text === "" ? NaN : Number(text);
        };
        const rows = [...table.tBodies[0].rows].sort((one, other) => {
          const [a, b] = [value(one), value(other)];
          if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // missing values stay last
          return descending ? b - a : a - b;
        });
        table.tBodies[0].append(...rows);
      });
    });
  }
})();
