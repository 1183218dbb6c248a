"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const sheet = JSON.parse(byId("sheet").textContent);
  const boxes = [...document.querySelectorAll("input[data-number]")];
  let saved = true;

  document.querySelectorAll(".script-only").forEach((element) => { element.hidden = false; });

  const asJson = () => JSON.stringify(sheet, null, 1) + "\n";
  // A spreadsheet would run a cell that begins like a formula.
  const cell = (value) => `"${String(value).replace(/^[=+\-@\t\r]/, "'$&").replace(/"/g, '""')}"`;
  const asCsv = () => [
    ["row", "id", "label", "half", "wrong"],
    ...sheet.images.map((image) => [image.row, image.id, image.label, image.half, image.wrong]),
  ].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";

  const update = () => {
    let marked = 0;
    for (const box of boxes) {
      sheet.images[Number(box.dataset.number)].wrong = box.checked;
      marked += box.checked ? 1 : 0;
    }
    byId("count").textContent = marked ? `${marked} of ${boxes.length} marked` : "nothing marked";
    byId("marks").value = asJson();
  };

  const save = (text, kind, name) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: kind }));
    link.download = name;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    saved = true;
    document.querySelector(".said").textContent = `Saved as ${name}.`;
  };

  for (const box of boxes) {
    box.addEventListener("change", () => { saved = false; document.querySelector(".said").textContent = ""; update(); });
  }
  byId("save-json").addEventListener("click", () => save(asJson(), "application/json", "marks.json"));
  byId("save-csv").addEventListener("click", () => save(asCsv(), "text/csv", "marks.csv"));
  // Marks live in this page alone.
  addEventListener("beforeunload", (event) => { if (!saved) event.preventDefault(); });
  update();
})();
