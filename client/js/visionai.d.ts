/** Client of a VisionAI server, for browsers and Node 22 or newer. */

/** The bytes of an image file: JPEG, PNG, WebP or BMP. */
export type ImageSource = Blob | ArrayBuffer | ArrayBufferView;

export type Detect = "auto" | "always" | "never";

export type Priority = "high" | "normal" | "low";

/** Emotion to probability, 0..1; the probabilities of a face sum to 1. */
export type Probabilities = Record<string, number>;

export interface Face {
  /** x, y, width and height in pixels of the sent image, which the server turns upright first. */
  box: [number, number, number, number];
  detection_score: number;
  emotion_name: string;
  confidence: number;
  probabilities: Probabilities;
  /** Follows a face through a stream. */
  face_id?: number | string;
}

/** Milliseconds that the server spent, network not included. */
export interface Timing {
  decode: number;
  queue: number;
  inference: number;
  total: number;
  /** Images in the run of the model that answered. */
  batch_size?: number;
}

export interface Prediction {
  type: "prediction";
  status: "success";
  emotion_name: string;
  /** 0..1 */
  confidence: number;
  model_version_tag: string;
  processing_time_ms: number;
  /** ISO 8601; UTC where it has no offset. */
  timestamp: string;
  /** What follows is of protocol 2: older servers leave it out. */
  probabilities?: Probabilities;
  /** Largest first; the top-level emotion is the first face's. */
  faces?: Face[];
  /** False where the whole image was scored for want of a face. */
  face_detected?: boolean;
  /** Null where the prediction was not stored. */
  prediction_id?: string | null;
  timing?: Timing;
}

export interface Welcome {
  type: "welcome";
  message: string;
  version: string;
  /** Left out by servers of protocol 1. */
  protocol?: number;
  commands: Record<string, unknown>;
  /** Left out by servers that look at no token. */
  authentication?: "optional" | "required";
}

export interface Emotion {
  id: number;
  name: string;
  description: string;
}

export interface ModelInfo {
  status: string;
  model_path: string;
  input_shape: (number | string | null)[];
  output_shape: (number | string | null)[];
  num_classes: number;
  total_params: number;
  emotion_classes: string[];
  [more: string]: unknown;
}

export interface ModelVersion {
  version_tag: string;
  /** Whether it is the one that is not a canary. */
  active: boolean;
  /** 0 to 1 of the connections; missing where the server knows no canaries. */
  share?: number;
  precision: string;
  labels: string[];
}

export interface Health {
  type: "health";
  status: string;
  service: string;
  timestamp: string;
  clients_connected: number;
  [more: string]: unknown;
}

export interface Stats {
  type: "stats";
  window_s: number;
  count: number;
  mean_confidence: number | null;
  emotions: Record<string, { count: number; mean_confidence: number | null }>;
  /** Percentile, such as p99, to milliseconds. */
  latency_ms: Record<string, number | null>;
  /** Whose predictions these are of. */
  scope?: "user" | "anonymous" | "connection";
  /** When the window begins: ISO 8601, UTC. */
  since?: string;
  /** Answered and not yet stored, and so not counted. */
  pending?: number;
  bucket_s?: number;
  /** Faces by emotion in each part of the window, the oldest first, where buckets were asked for. */
  buckets?: Record<string, number>[];
}

export interface StoredPrediction {
  prediction_id: string | null;
  timestamp: string;
  emotion_name: string | null;
  confidence: number | null;
  model_version_tag?: string | null;
  processing_time_ms?: number | null;
  /** The faces of one image share their prediction_id. */
  face_index?: number;
  request_id?: string | null;
  /** x, y, width and height; null where the whole image was scored. */
  box?: [number, number, number, number] | null;
  [more: string]: unknown;
}

export interface HistoryPage {
  type: "history";
  predictions: StoredPrediction[];
  /** Asks for the page after this one; null on the last. */
  next: string | null;
  /** Answered and not yet stored, and so not told of. */
  pending?: number;
}

/** Options of a connection; servers refuse those they do not know. */
export interface Configuration {
  detect?: Detect;
  max_faces?: number | null;
  ordered?: boolean;
  stream?: boolean;
  smoothing_ms?: number | null;
  deadline_ms?: number | null;
  /** In `configure`: takes the place of the client's once it is accepted. */
  token?: string | null;
  [more: string]: unknown;
}

export type ErrorCode =
  | "cannot_connect"
  | "connection_lost"
  | "protocol_violation"
  | "invalid_request"
  | "invalid_json"
  | "unknown_command"
  | "invalid_base64"
  | "invalid_image"
  | "image_too_large"
  | "no_face"
  | "overloaded"
  | "rate_limited"
  | "shutting_down"
  | "unauthorized"
  | "deadline_exceeded"
  | "superseded"
  | "internal"
  | "error";

/** Base of all errors. Branch on the class or on `code`; `message` is for people and may change. */
export class VisionAIError extends Error {
  /** One of `ErrorCode`, or the code of a newer server. */
  readonly code: ErrorCode | (string & {});
  /** When the server says to try again. */
  readonly retryAfterMs?: number;
  constructor(message: string, code?: string, retryAfterMs?: number);
}
/** The server cannot be reached or understood: cannot_connect, connection_lost, protocol_violation. */
export class ConnectionFailed extends VisionAIError {}
/** The same request would fail again: invalid_request, unknown_command, invalid_image, no_face, and so on. */
export class RequestRejected extends VisionAIError {}
/** The same request may succeed later: overloaded, rate_limited, shutting_down. */
export class Unavailable extends VisionAIError {}
/** No token was given, or the server does not accept it: unauthorized. */
export class Unauthorized extends VisionAIError {}
/** No answer in time, whether the server or this client noticed: deadline_exceeded. */
export class DeadlineExceeded extends VisionAIError {}
/** A newer camera frame overtook this one: superseded. */
export class Superseded extends VisionAIError {}

/** The pause before retry n (from 0) is uniform between 0 and min(maxDelayMs, firstDelayMs * 2**n). */
export interface Retry {
  /** Tries in all; 10. Infinity never gives up before the request's timeout. */
  attempts?: number;
  /** 100 */
  firstDelayMs?: number;
  /** 5000 */
  maxDelayMs?: number;
}

/** What a client needs of a WebSocket: those of browsers and Node have it, and that of the package ws. */
export interface Socket {
  binaryType: string;
  readonly bufferedAmount: number;
  readonly readyState?: number;
  onopen: ((event: any) => unknown) | null;
  onmessage: ((event: any) => unknown) | null;
  onerror: ((event: any) => unknown) | null;
  onclose: ((event: any) => unknown) | null;
  /** Text or a Uint8Array. */
  send(data: any): void;
  close(code?: number): void;
}

export interface ClientOptions {
  /** A JSON Web Token or API key, sent with requests that concern a user. */
  token?: string;
  /** Until a request fails with deadline_exceeded, retries included; 30 000. */
  timeoutMs?: number;
  /** For one attempt to connect; 5000. */
  connectTimeoutMs?: number;
  /** Silence after which the server is asked whether it is still there; 10 000. Infinity for never. */
  keepaliveMs?: number;
  retry?: Retry;
  /** Another WebSocket class, where there is no global one. */
  WebSocket?: new (url: string) => Socket;
}

export interface RequestOptions {
  timeoutMs?: number;
  /** Aborting it gives the request up; it rejects with the signal's reason. */
  signal?: AbortSignal;
}

export interface PredictOptions extends RequestOptions {
  /** auto finds faces and scores the whole image where there is none; always fails then; never takes a face crop. */
  detect?: Detect;
  /** Largest first. */
  maxFaces?: number;
  /** Before or after other requests while the server is busy; normal. */
  priority?: Priority;
}

/** What became of one image of `predictMany`. A Blob whose file is gone or changed is a DOMException. */
export type Outcome<Image> =
  | { index: number; image: Image; prediction: Prediction; error?: undefined }
  | { index: number; image: Image; prediction?: undefined; error: VisionAIError | TypeError | DOMException };

/** The events of a client; the welcome is the `detail` of "open". */
export interface VisionAIEvents {
  open: CustomEvent<Welcome>;
  close: Event;
  reconnecting: Event;
}

/** As any EventTarget takes it. Named here, for programs that are compiled without the browser's types. */
export type EventHandler = ((event: Event) => void) | { handleEvent(event: Event): void };

export interface EventOptions {
  capture?: boolean;
  once?: boolean;
  passive?: boolean;
  signal?: AbortSignal;
}

/** A client. Fires the events of `VisionAIEvents`. */
export class VisionAI extends EventTarget {
  addEventListener<Name extends keyof VisionAIEvents>(
    name: Name,
    listener: ((this: VisionAI, event: VisionAIEvents[Name]) => unknown) | null,
    options?: EventOptions | boolean,
  ): void;
  addEventListener(
    name: string,
    listener: EventHandler | null,
    options?: EventOptions | boolean,
  ): void;
  removeEventListener<Name extends keyof VisionAIEvents>(
    name: Name,
    listener: ((this: VisionAI, event: VisionAIEvents[Name]) => unknown) | null,
    options?: EventOptions | boolean,
  ): void;
  removeEventListener(
    name: string,
    listener: EventHandler | null,
    options?: EventOptions | boolean,
  ): void;
  readonly url: string;
  constructor(url: string, options?: ClientOptions);
  get state(): "open" | "connecting" | "closed";
  /** Bytes that wait to be sent. */
  get bufferedAmount(): number;
  connect(): Promise<Welcome>;
  close(): void;
  predict(image: ImageSource, options?: PredictOptions): Promise<Prediction>;
  predictMany<Image extends ImageSource>(
    images: Iterable<Image> | AsyncIterable<Image>,
    options?: PredictOptions & { concurrency?: number },
  ): AsyncGenerator<Outcome<Image>, void, void>;
  emotions(): Promise<Emotion[]>;
  modelInfo(): Promise<ModelInfo>;
  models(): Promise<ModelVersion[]>;
  /** Milliseconds to the server and back. */
  ping(): Promise<number>;
  health(): Promise<Health>;
  /** Without a token, of all clients without one; with scope "connection", of this connection. */
  stats(options?: { windowS?: number; buckets?: number; scope?: "all" | "connection" }): Promise<Stats>;
  /** `cursor` is the `next` of the page before; null is for the first. */
  history(options?: { limit?: number; cursor?: string | null }): Promise<HistoryPage>;
  configure(options?: Configuration, request?: RequestOptions): Promise<Configuration>;
  /** Any command; `command` and `id` are no fields. */
  request(command: string, fields?: Record<string, unknown>, options?: RequestOptions): Promise<Record<string, unknown>>;
}
