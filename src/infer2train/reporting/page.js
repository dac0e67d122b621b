/* Sorts a page's tables by the column whose heading is pressed. Without it the page is as readable, in its own order. */
"use strict";
const value = (cell, numeric) => {
  const text = (cell.dataset.value ?? cell.textContent).trim();
  return numeric ? parseFloat(text.replace(/[\s,]/g, "").replace("\u2212", "-")) : text;
};
const compare = (one, other) =>
  typeof one === "number" ? one - other : one.localeCompare(other, "en", { numeric: true });
const isAbsent = (found) => Number.isNaN(found) || found === "" || found === "\u2013";

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    if (heading.classList.contains("picture")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      table.querySelectorAll("th[aria-sort]").forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      const keyed = [...body.rows].map((row) => [value(row.cells[column], heading.classList.contains("number")), row]);
      keyed.sort(([one], [other]) =>
        isAbsent(one) || isAbsent(other) ? isAbsent(one) - isAbsent(other) : sign * compare(one, other));
      body.append(...keyed.map(([, row]) => row));
    });
  });
}
