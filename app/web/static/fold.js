// Unfolds what has room, while the page is still being read, so that nothing moves afterwards.
for (const details of document.querySelectorAll("details.fold")) {
  const wide = matchMedia(`(min-width: ${details.dataset.wide})`);
  const fold = () => {
    details.open = wide.matches;
  };
  fold();
  wide.addEventListener("change", fold);
}
