/* What is done once, at the start. */

document.addEventListener("keydown", onKey);
list.addEventListener("click", (event) => {
  const hit = event.target.closest(".hit");
  if (hit) { const {query, method, at} = hitOf(hit); view(query, method, at); }
});
list.addEventListener("focusin", (event) => { current = queryOf(event.target); });
viewer.addEventListener("close", () => {
  if (viewed) focusHit(viewed.query, viewed.method, viewed.at);
  viewed = null;
});
for (const dialog of [viewer, $("keys")]) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.querySelectorAll("#close, .close").forEach((button) =>
    button.addEventListener("click", () => dialog.close()));
}
$("before").addEventListener("click", () => turn(-1));
$("after").addEventListener("click", () => turn(1));
$("help").addEventListener("click", () => $("keys").showModal());
let typing = 0;
$("search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(changed, 120); });
document.querySelectorAll(".tools select, .tools input[type=checkbox]").forEach((input) =>
  input.addEventListener("change", () => {
    if (input.id === "method" || input.id === "against") {      // who asks for a method wants to see it
      const wanted = (box) => box.value === input.value;
      document.getElementsByName("shown").forEach((box) => { box.checked ||= wanted(box); });
    }
    changed();
  }));
document.querySelectorAll(".legend [data-series]").forEach((entry) => {
  const charts = entry.closest("section");
  entry.addEventListener("pointerenter", () => {
    charts.classList.add("focused");
    charts.querySelectorAll(".series").forEach((line) =>
      line.classList.toggle("on", line.dataset.series === entry.dataset.series));
  });
  entry.addEventListener("pointerleave", () => charts.classList.remove("focused"));
});
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  makeRoom();
  changed();
});
addEventListener("beforeprint", () => {
  watcher.disconnect();       // it would empty again what is out of view
  watcher.takeRecords();
  visible.forEach((query) => {
    fill(query);
    query.strips.forEach((strip) => showStrip(strip, FIRST));
  });
});
addEventListener("afterprint", update);
document.querySelectorAll(".tools, .status").forEach((part) => { part.hidden = false; });
makeRoom();
readState();
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", update);
else update();
