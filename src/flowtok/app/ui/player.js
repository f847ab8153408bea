// Moves a player of views.py: its slider, its strip and its play button. Gradio runs this once for each place of
// results; `element` is that place, and `watch` tells of new results. What is clicked is looked up when it happens,
// because the results are replaced.
const still = window.matchMedia("(prefers-reduced-motion: reduce)");
const SECONDS_A_FRAME = 0.16;
let timer = null;

const one = (selector) => element.querySelector(selector);
const frames = () => [...element.querySelectorAll(".ft-frame")];

function show(index) {
  const range = one(".ft-range"), large = one(".ft-large"), all = frames();
  if (!range || !all[index]) return;
  const label = all[index].dataset.label;
  range.value = index;
  range.setAttribute("aria-valuetext", label);
  one(".ft-label").textContent = label;
  large.src = all[index].querySelector("img").src;
  large.alt = `${one(".ft-player").dataset.title}, ${label}`;
  all.forEach((frame, i) => (i === index ? frame.setAttribute("aria-current", "true") : frame.removeAttribute("aria-current")));
}

function stop() {
  window.clearInterval(timer);
  timer = null;
  if (one(".ft-play")) one(".ft-play").textContent = "Play";
}

function play() {
  const last = frames().length - 1;
  let index = Number(one(".ft-range").value);
  if (index >= last) index = 0;
  one(".ft-play").textContent = "Pause";
  show(index);
  timer = window.setInterval(() => {
    show(++index);
    if (index >= last) stop();
  }, 1000 * SECONDS_A_FRAME);
}

element.addEventListener("input", (event) => {
  if (!event.target.matches(".ft-range")) return;
  stop();
  show(Number(event.target.value));
});

element.addEventListener("click", (event) => {
  const frame = event.target.closest(".ft-frame");
  if (frame) {
    stop();
    show(frames().indexOf(frame));
  } else if (event.target.closest(".ft-play")) {
    timer === null ? play() : stop();
  }
});

watch("value", () => {
  stop();
  if (!one(".ft-range")) return;
  show(frames().length - 1);
  // On a phone the picture is below the fields.
  one(".ft-large").scrollIntoView({ block: "nearest", behavior: still.matches ? "auto" : "smooth" });
  if (!still.matches) play();
});
