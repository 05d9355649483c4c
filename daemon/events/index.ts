export { EVENT_KINDS, type Event, type EventKind } from './event.ts';
