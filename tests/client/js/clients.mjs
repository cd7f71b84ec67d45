// Clients of the tests, closed at their end, and images that tell a peer what to do.
import { after } from "node:test";
import { VisionAI } from "../../../client/js/visionai.js";

const clients = [];
after(() => clients.forEach((client) => client.close()));

export function connect(url, options = {}) {
  const client = new VisionAI(url, { retry: { attempts: 5, firstDelayMs: 10, maxDelayMs: 50 }, ...options });
  clients.push(client);
  return client;
}

let salt = 0;
/** A script for the peer, different each time: it counts how often it has seen one. */
export const image = (emotion, script = {}) =>
  new TextEncoder().encode(JSON.stringify({ emotion, salt: `${process.pid}.${salt++}`, ...script }));
