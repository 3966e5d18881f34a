// Makes each table with the class `sortable` sortable by its columns. Without this script, the page has everything.
for (const hint of document.querySelectorAll(".hint")) hint.hidden = false;
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const isNumeric = head.classList.contains("n");
      const descending = head.ariaSort ? head.ariaSort === "ascending" : isNumeric;
      const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent.trim();
      // Cells without a value stay at the end, in both directions.
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNumeric ? x - y : x.localeCompare(y);
        return descending ? -order : order;
      };
      body.append(...[...body.rows].sort(compare));
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    });
  });
}
