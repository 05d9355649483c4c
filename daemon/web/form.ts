// Reads what a form or a mailbox provider posts. Callers may rely on: nothing longer than a few kilobytes is
// kept, a body that does not arrive whole or is not well formed is told apart from one that is, and files
// in it are never looked at. RFC 7578, WHATWG URL.
import type { IncomingMessage } from 'node:http';

// The longest form has four fields of names; multipart with its boundaries stays below 1,000.
const BODY_OCTETS = 4_096;

/** `too-long` also where the body does not arrive whole; `malformed` where it is no form. */
export async function readForm(request: IncomingMessage): Promise<FormData | 'too-long' | 'malformed'> {
  const parts: Buffer[] = [];
  let octets = 0;
  try {
    for await (const part of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      octets += part.length;
      if (octets > BODY_OCTETS) return 'too-long';
      parts.push(part);
    }
  } catch {
    return 'too-long'; // the client went away
  }
  try {
    return await new Response(new Uint8Array(Buffer.concat(parts)), { headers: { 'Content-Type': request.headers['content-type'] ?? '' } }).formData();
  } catch {
    return 'malformed'; // neither multipart/form-data nor urlencoded
  }
}

/** The text of a field; '' where there is none. */
export function fieldOf(form: FormData, name: string): string {
  const value = form.get(name);
  return typeof value === 'string' ? value.trim() : '';
}
