// Requests to the daemon. Pictures go through one queue, a few at a time, so that the requests for news never wait.

const AT_ONCE = 4;
const PATIENCE = 8000;

/** The daemon answered with an error: `status` of HTTP, and the `seconds` after which to ask again. */
export class Refused extends Error {
  constructor(status, message, seconds) {
    super(message);
    this.status = status;
    this.seconds = seconds;
  }
  get busy() {
    return this.status === 503;
  }
}

async function fetched(path, more = {}) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE), ...more });
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, error ?? `status ${answer.status}`, Number(answer.headers.get("Retry-After")) || 1);
}

/** JSON, with one request. Throws Refused, or the error of fetch if the daemon does not answer. */
export async function ask(path) {
  return (await fetched(path)).json();
}

/** Have the daemon change something, with the token of its state. Throws as `ask` does. */
export async function act(path, token) {
  return (await fetched(path, { method: "POST", headers: { "X-Emdenoised-Token": token } })).json();
}

/** JSON; asks again while the daemon is busy. Null once `wanted()` is false. Throws as `ask` does. */
export async function askPatiently(path, wanted) {
  while (wanted()) {
    try {
      return await ask(path);
    } catch (error) {
      if (!(error instanceof Refused && error.busy)) throw error;
      await pause(error.seconds);
    }
  }
  return null;
}

const pause = (seconds) => new Promise((go) => setTimeout(go, 1000 * seconds));

class Pictures {
  #waiting = [];
  #running = 0;
  #busy = 0;
  onbusy = () => {};

  /**
   * A picture as a Blob. `urgency`: the least goes first. Asks again while the daemon is busy or does not answer. Null
   * once `wanted()` is false. Throws Refused.
   */
  get(path, urgency, wanted) {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ path, urgency, wanted, resolve, reject });
      this.#next();
    });
  }

  #next() {
    while (this.#running < AT_ONCE && this.#waiting.length) {
      const urgent = this.#waiting.reduce((best, one, at, all) => (one.urgency < all[best].urgency ? at : best), 0);
      const [one] = this.#waiting.splice(urgent, 1);
      this.#running += 1;
      this.#fetch(one).then(one.resolve, one.reject).finally(() => {
        this.#running -= 1;
        this.#next();
      });
    }
  }

  async #fetch({ path, wanted }) {
    while (wanted()) {
      try {
        return await (await fetched(path)).blob();
      } catch (error) {
        if (error instanceof Refused && !error.busy) throw error;
        this.#countBusy(error.busy ? 1 : 0);
        await pause(error.seconds ?? 1);
        this.#countBusy(error.busy ? -1 : 0);
      }
    }
    return null;
  }

  #countBusy(change) {
    this.#busy += change;
    this.onbusy(this.#busy > 0);
  }
}

export const pictures = new Pictures();
