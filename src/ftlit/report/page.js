"use strict";
// tables: a click on a heading sorts by that column, a second click reverses the order
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th").forEach((head, column) => head.addEventListener("click", () => {
    const body = table.tBodies[0], rising = head.dataset.rising !== "true";
    const value = row => { const text = row.cells[column].textContent, number = Number(text.replaceAll(",", "")); return Number.isNaN(number) ? text : number; };
    const order = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a < typeof b ? -1 : 1;
    body.append(...[...body.rows].sort((a, b) => (rising ? 1 : -1) * order(value(a), value(b))));
    head.dataset.rising = rising;
  }));
}
// the confusion matrix: rows are true classes, columns predicted classes, shades are shares of the row
const source = document.getElementById("confused");
if (source) {
  const { names, cells } = JSON.parse(source.textContent), number = names.length;
  const rows = names.map(() => new Map()), images = new Array(number).fill(0);
  for (const [row, column, count] of cells) { rows[row].set(column, count); images[row] += count; }
  const recall = names.map((_, i) => images[i] ? (rows[i].get(i) ?? 0) / images[i] : 1);
  const keys = { name: (a, b) => a - b, recall: (a, b) => recall[a] - recall[b] || a - b, images: (a, b) => images[b] - images[a] || a - b };
  const canvas = document.getElementById("matrix"), summary = document.getElementById("cell"), select = document.getElementById("order");
  const side = Math.max(4, Math.min(40, Math.floor(680 / number))), named = side >= 9;
  const pen = canvas.getContext("2d"), font = `${Math.min(12, side)}px system-ui, sans-serif`;
  pen.font = font;
  const margin = named ? Math.min(160, 8 + Math.max(...names.map(name => pen.measureText(name).width))) : 2;
  const ratio = window.devicePixelRatio || 1, size = margin + number * side + 2;
  canvas.width = canvas.height = size * ratio;
  canvas.style.width = `${size}px`;
  let order = [];
  const draw = () => {
    order = names.map((_, i) => i).sort(keys[select.value]);
    const place = new Array(number);
    order.forEach((i, at) => { place[i] = at; });
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, size, size);
    pen.font = font;
    pen.textBaseline = "middle";
    pen.strokeStyle = "#d9dce1";
    pen.strokeRect(margin, margin, number * side, number * side);
    for (const [row, column, count] of cells) {
      const share = count / images[row], x = margin + place[column] * side, y = margin + place[row] * side;
      const [r, g, b] = row === column ? [47, 109, 181] : [196, 60, 40];
      pen.fillStyle = `rgba(${r}, ${g}, ${b}, ${0.12 + 0.88 * share})`;
      pen.fillRect(x, y, side, side);
      if (side >= 22) {
        pen.fillStyle = share > 0.5 ? "#fff" : "#1c2733";
        pen.textAlign = "center";
        pen.fillText(count, x + side / 2, y + side / 2, side);
      }
    }
    if (!named) return;
    pen.fillStyle = "#1c2733";
    order.forEach((i, at) => {
      pen.textAlign = "right";
      pen.fillText(names[i], margin - 4, margin + (at + 0.5) * side, margin - 6);
      pen.save();
      pen.translate(margin + (at + 0.5) * side, margin - 4);
      pen.rotate(-Math.PI / 2);
      pen.textAlign = "left";
      pen.fillText(names[i], 0, 0, margin - 6);
      pen.restore();
    });
  };
  select.addEventListener("change", draw);
  canvas.addEventListener("mousemove", event => {
    const scale = size / canvas.getBoundingClientRect().width;
    const [column, row] = [event.offsetX, event.offsetY].map(at => order[Math.floor((at * scale - margin) / side)]);
    summary.textContent = row === undefined || column === undefined ? "" : `${names[row]} predicted as ${names[column]}: ${rows[row].get(column) ?? 0} of ${images[row]}`;
  });
  draw();
}
