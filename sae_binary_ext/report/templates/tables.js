"use strict";

// Tables: a click on a column's head sorts by it, a second one the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => head.addEventListener("click", () => {
    const falling = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const value = (row) => row.cells[place].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((one, two) => compare(value(one), value(two)));
    table.tBodies[0].append(...(falling ? rows.reverse() : rows));
  }));
}

function compare(one, two) {
  const [first, second] = [Number(one), Number(two)];
  return isNaN(first) || isNaN(second) ? one.localeCompare(two) : first - second;
}
