// A picture of each sound is its play button; without scripts the browser's own controls stay.
let playing = null;
for (const sound of document.querySelectorAll(".sound")) {
  const audio = sound.querySelector("audio"), button = sound.querySelector("button");
  audio.controls = false;
  button.hidden = false;
  button.onclick = () => {
    if (playing && playing !== audio) playing.pause();
    playing = audio;
    audio.paused ? audio.play() : audio.pause();
  };
  audio.onplay = () => sound.classList.add("playing");
  audio.onpause = audio.onended = () => sound.classList.remove("playing");
  audio.ontimeupdate = () =>
    sound.style.setProperty("--at", `${(100 * audio.currentTime) / audio.duration || 0}%`);
}
