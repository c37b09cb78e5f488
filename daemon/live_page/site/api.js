// Asks the daemon. Pictures go through one queue, so that a few at a time are made and the page's pulse never waits.

const AT_ONCE = 4;
const PATIENCE = 8000;

/** The daemon answered, but not with what was asked for. */
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

async function fetched(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE) });
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, told.error ?? `status ${answer.status}`, Number(answer.headers.get("Retry-After")) || 1);
}

/** JSON, once. Throws Refused, or what fetch throws when nobody answers. */
export async function ask(path) {
  return (await fetched(path)).json();
}

/** JSON; asks again as long as the daemon is busy and `wanted` says so. Null where it is not wanted any more. */
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
   * A picture as a Blob. `urgency`: the least goes first. It is asked for again while the daemon is busy or away, as
   * long as `wanted` says so: null where it is not wanted any more. Throws Refused.
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
        this.#told(error.busy ? 1 : 0);
        await pause(error.seconds ?? 1);
        this.#told(error.busy ? -1 : 0);
      }
    }
    return null;
  }

  #told(change) {
    this.#busy += change;
    this.onbusy(this.#busy > 0);
  }
}

export const pictures = new Pictures();
