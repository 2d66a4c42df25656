"use strict";
(() => {
  const tips = JSON.parse(document.getElementById("tips").textContent);
  const tip = document.getElementById("tip");

  // Names only ever become text.
  function line(name, value) {
    const row = document.createElement("div");
    for (const text of [name, value]) {
      const part = document.createElement("span");
      part.textContent = text;
      row.append(part);
    }
    return row;
  }

  function show(spot) {
    const entries = tips[spot.closest("[data-tips]").dataset.tips];
    tip.replaceChildren(...entries[Number(spot.dataset.tip)].map(([name, value]) => line(name, value)));
    tip.hidden = false;
    const box = spot.getBoundingClientRect();
    const left = Math.min(box.left + box.width / 2 + 14, document.documentElement.clientWidth - tip.offsetWidth - 10);
    const below = box.bottom + 10 + tip.offsetHeight < window.innerHeight;
    const top = below ? box.bottom + 10 : Math.max(4, box.top - 10 - tip.offsetHeight);
    tip.style.left = `${Math.max(6, left) + window.scrollX}px`;
    tip.style.top = `${top + window.scrollY}px`;
  }

  function hide() {
    tip.hidden = true;
  }

  function spotOf(event) {
    return event.target instanceof Element ? event.target.closest("[data-tip]") : null;
  }

  for (const kind of ["pointerover", "focusin", "click"]) {
    document.addEventListener(kind, (event) => (spotOf(event) ? show(spotOf(event)) : hide()));
  }
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());

  for (const part of document.querySelectorAll(".evolving")) {
    const slider = part.querySelector("input");
    const frames = [...part.querySelectorAll(".frame")];
    const now = part.querySelector(".now");
    const turn = () => {
      frames.forEach((frame, place) => (frame.hidden = place !== Number(slider.value)));
      now.textContent = frames[Number(slider.value)].dataset.label;
      slider.setAttribute("aria-valuetext", now.textContent);
    };
    slider.addEventListener("input", turn);
    for (const button of part.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        slider.value = String(Number(slider.value) + Number(button.dataset.step));
        turn();
      });
    }
    turn();
  }
})();
