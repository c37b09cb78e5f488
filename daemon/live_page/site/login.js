// Sends the token that somebody types; the daemon answers with a cookie, and the live page is loaded with it.

const find = (name) => document.querySelector(name);

find("#login").addEventListener("submit", async (event) => {
  event.preventDefault();
  find("#said").textContent = "";
  try {
    const headers = { Authorization: `Bearer ${find("#token").value.trim()}` };
    const answer = await fetch("act/log-in", { method: "POST", headers });
    if (answer.ok) location.reload();
    else find("#said").textContent = answer.status === 403 ? "This is not the token." : `The daemon answers with status ${answer.status}.`;
  } catch (error) { // fetch refuses letters that no header may have
    find("#said").textContent = error instanceof TypeError && /header|ISO|ByteString/i.test(error.message) ? "This is not the token." : "The daemon does not answer.";
  }
});
