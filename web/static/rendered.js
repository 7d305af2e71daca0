/** Tells the engine once a second what this page painted, and how late. No DOM. */

const EVERY_MS = 1_000;

/** Calls `then` once the picture of this animation frame is out of our hands. @param {() => void} then */
function afterPaint(then) {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => {
    port1.close();
    then();
  };
  port2.postMessage(null);
}

export class RenderReport {
  /** @param {(message: object) => void} send */
  constructor(send) {
    this.send = send;
    this._frame = -1;
    this._sentAt = -Infinity;
    /** @type {number|null} from receiving a frame to having painted it, as last measured */
    this.lagMs = null;
  }

  /**
   * An animation frame has drawn what is known up to engine frame `frame`.
   * @param {number} frame @param {number} receivedAt ms on the page's clock @param {number} paintedPerSecond @param {number} now
   */
  painted(frame, receivedAt, paintedPerSecond, now) {
    if (frame < 0 || frame === this._frame || now - this._sentAt < EVERY_MS) return;
    this._frame = frame;
    this._sentAt = now;
    afterPaint(() => {
      this.lagMs = Math.max(0, performance.now() - receivedAt);
      this.send({ type: "ack_rendered", frame, fps: paintedPerSecond, lag_ms: this.lagMs });
    });
  }
}
