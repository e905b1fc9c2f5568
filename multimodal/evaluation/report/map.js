// A map is coloured by modality until its button is pressed; without scripts it stays so.
for (const button of document.querySelectorAll(".recolour")) {
  const figure = button.closest(".map");
  button.hidden = false;
  button.onclick = () => {
    const byClass = figure.classList.toggle("by-class");
    button.textContent = byClass ? "colour by modality" : "colour by class";
  };
}
