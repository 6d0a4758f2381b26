// What a finger does without being meant: it scrolls the page from a slider, or taps again where
// another button has taken the place of the first.

const REST_MS = 500, SAME_PLACE_PX = 40, MOVE_PX = 8;

let press = null;  // the last one
let slider = null;  // under the finger, until the page hears of that
let changed = null;  // {press, until}: the one before other buttons came; a second one waits so long

export function noteChange() {
  changed = press && { press, until: performance.now() + REST_MS };
}

const distance = ({ clientX, clientY }, { x, y }) => [Math.abs(clientX - x), Math.abs(clientY - y)];

function stopSecondTap(event) {
  const now = performance.now();  // a click without detail is one of the keyboard
  if (!event.detail || !changed || now > changed.until) return;
  if (Math.max(...distance(event, changed.press)) > SAME_PLACE_PX) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  changed.until = now + REST_MS;
}

// A browser moves a slider as soon as a finger is on it. The page hears of that when the finger moves
// along the slider or leaves it; if the page scrolls instead, the slider returns.
const stopChange = (event) => { if (event.target === slider) event.stopImmediatePropagation(); };

const restore = () => { if (slider) slider.value = press.value; };

function accept() {
  const moved = slider;
  slider = null;
  moved?.dispatchEvent(new Event("input", { bubbles: true }));
}

// The browser's last change follows the end of the touch.
const end = () => setTimeout(() => { restore(); slider = null; });

const listeners = {
  pointerdown({ isPrimary, target, pointerType, clientX: x, clientY: y }) {
    if (!isPrimary) return;  // a second finger
    press = { x, y, value: target.value };
    slider = pointerType === "touch" && target.type === "range" ? target : null;
  },
  pointermove(event) {
    const [along, across] = slider && event.isPrimary ? distance(event, press) : [];
    if (along > MOVE_PX && along > across) accept();
  },
  pointerup({ isPrimary }) { if (isPrimary) accept(); },
  pointercancel: restore,
  touchend: end, touchcancel: end,
  input: stopChange, change: stopChange, click: stopSecondTap, dblclick: stopSecondTap,
};
for (const [type, listener] of Object.entries(listeners)) addEventListener(type, listener, true);
