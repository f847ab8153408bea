// Takes the brush when the tab with the canvas is opened: Gradio waits for a click on it, and whoever draws before sees
// nothing happen. The canvas is made only then, so it is looked for until it is there.
() => {
  const MILLISECONDS = 50, TIMES = 200;
  let left = TIMES;
  const timer = window.setInterval(() => {
    const brush = [...document.querySelectorAll('button[aria-label="Brush"]')].find((button) => button.offsetParent);
    if (brush && !brush.classList.contains("highlight")) brush.click();
    if (brush || --left === 0) window.clearInterval(timer);
  }, MILLISECONDS);
}
