() => {
  // After a new query, the focus moves to the results, for users of a keyboard, a screen reader or a phone.
  const answer = document.querySelector("#cca-found, #cca-results .cca-problem");
  if (answer) answer.focus();
}
