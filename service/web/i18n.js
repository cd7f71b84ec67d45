/** The page's texts in English and Spanish, and numbers and times as each writes them. */

const EN = {
  skip: "Skip to the content",
  language: "Language",
  theme: "Colours",
  themeSystem: "System",
  themeLight: "Light",
  themeDark: "Dark",
  views: "Views",
  live: "Live",
  photos: "Photos",
  history: "History",
  close: "Close",
  tokenNeeded: "This server asks for a token or an API key",
  connect: "Connect",
  connecting: "Connecting…",
  ready: "Connected",
  reconnecting: "Connection lost. Reconnecting…",
  gone: "The server does not answer. Trying again…",
  refused: "The server asks for a token or an API key",
  cameraImage: "Image of the camera",
  liveTitle: "See it live",
  liveText: "Your camera's images go to this server, and to nobody else.",
  start: "Start the camera",
  pause: "Pause",
  resume: "Resume",
  stop: "Stop",
  camera: "Camera",
  cameraNumber: "Camera {number}",
  roundTrip: "Round trip",
  server: "Server",
  rate: "Rate",
  perSecond: "{number}/s",
  faces: "Faces",
  face: "Face {number}",
  facesEmpty: "The emotions of each face appear here.",
  moreFaces: "{number} more",
  noFaceInView: "No face in view",
  paused: "Paused",
  busy: "The server is busy. The picture goes on in a moment.",
  photosFirst: "The photos first. The picture goes on in a moment.",
  session: "This session",
  sessionSpan: "the last two minutes",
  sessionEmpty: "Shares of the emotions over the last two minutes: none yet",
  sessionShares: "Shares of the emotions over the last two minutes: {shares}",
  dropTitle: "Choose photos",
  dropText: "or drop them anywhere on this page, or paste one",
  working: "Looking…",
  wholeImage: "Take the whole photo as one face",
  tookWhole: "the whole photo, taken as one face",
  facesFound: "{number} faces",
  faceFound: "1 face",
  photoDone: "{name}: {emotion}, {share}",
  window: "Time window",
  window600: "10 minutes",
  window3600: "1 hour",
  window86400: "24 hours",
  window604800: "7 days",
  refresh: "Refresh",
  meanConfidence: "Mean confidence",
  latency50: "Latency, median",
  latency99: "Latency, 99th percentile",
  shares: "Emotions",
  emotion: "Emotion",
  share: "Share",
  count: "Count",
  overTime: "Shares over time",
  overTimeShares: "Shares of the emotions, from {from} to {to}",
  latest: "Latest predictions",
  latestEmpty:
    "None since this page connected. What was predicted without a token or an API key is listed only to the connection " +
    "that asked for it.",
  when: "When",
  confidence: "Confidence",
  more: "Show more",
  historyEmpty: "Nothing was stored in this time. Start the camera or add a photo, then come back.",
  historyMissing: "This server keeps no history that it could show.",
  note:
    "An emotion score says which of the labels a face in an image resembles. It does not say what a person feels. " +
    "Do not use it to judge anybody.",
  angry: "Angry",
  disgust: "Disgust",
  fear: "Fear",
  happy: "Happy",
  neutral: "Neutral",
  sad: "Sad",
  surprise: "Surprise",
  seen: "{emotion}, {share}",
  error_camera_refused: "The camera was refused. Allow it for this page in the browser's address bar, then start again.",
  error_camera_missing: "No camera was found. Connect one, or use photos.",
  error_camera_busy: "The camera cannot be read. Another program may be using it.",
  error_camera_insecure: "Browsers give the camera only to pages from https:// or localhost. Use photos, or set up TLS.",
  error_camera_ended: "The camera was disconnected.",
  error_no_face: "No face was found in this photo.",
  error_invalid_image:
    "This image cannot be read: it is cut off, damaged or tiny, or neither JPEG, PNG, WebP nor BMP. Save it anew as JPEG.",
  error_too_many_photos: "The page shows {most} photos. Add the others once these are done, from {name} on.",
  error_unreadable: "This cannot be read. A file may have been moved or changed; of a folder, choose the photos in it.",
  error_image_too_large: "This image is too large for the server.",
  error_overloaded: "The server is overloaded. Try again in a moment.",
  error_rate_limited: "Too many requests in a short time. Try again in a moment.",
  error_unauthorized: "The server did not accept the token or API key. It may be mistyped, or have expired.",
  error_token_needed: "The server asks for a token or an API key.",
  error_deadline_exceeded: "The server took too long to answer.",
  error_connection_lost: "The connection to the server was lost. The page reconnects by itself.",
  error_cannot_connect: "The server cannot be reached. The page tries again by itself.",
  error_shutting_down: "The server is shutting down. The page reconnects by itself.",
  error_other: "That did not work: {message}",
};

const ES = {
  skip: "Ir al contenido",
  language: "Idioma",
  theme: "Colores",
  themeSystem: "Sistema",
  themeLight: "Claro",
  themeDark: "Oscuro",
  views: "Vistas",
  live: "En vivo",
  photos: "Fotos",
  history: "Historial",
  close: "Cerrar",
  tokenNeeded: "Este servidor pide un token o una clave de API",
  connect: "Conectar",
  connecting: "Conectando…",
  ready: "Conectado",
  reconnecting: "Conexión perdida. Reconectando…",
  gone: "El servidor no responde. Se intenta de nuevo…",
  refused: "El servidor pide un token o una clave de API",
  cameraImage: "Imagen de la cámara",
  liveTitle: "Pruébalo en vivo",
  liveText: "Las imágenes de tu cámara van a este servidor y a nadie más.",
  start: "Encender la cámara",
  pause: "Pausar",
  resume: "Continuar",
  stop: "Apagar",
  camera: "Cámara",
  cameraNumber: "Cámara {number}",
  roundTrip: "Ida y vuelta",
  server: "Servidor",
  rate: "Ritmo",
  perSecond: "{number}/s",
  faces: "Rostros",
  face: "Rostro {number}",
  facesEmpty: "Aquí aparecen las emociones de cada rostro.",
  moreFaces: "{number} más",
  noFaceInView: "No se ve ningún rostro",
  paused: "En pausa",
  busy: "El servidor está ocupado. La imagen sigue en un momento.",
  photosFirst: "Primero las fotos. La imagen sigue en un momento.",
  session: "Esta sesión",
  sessionSpan: "los últimos dos minutos",
  sessionEmpty: "Proporción de las emociones en los últimos dos minutos: todavía ninguna",
  sessionShares: "Proporción de las emociones en los últimos dos minutos: {shares}",
  dropTitle: "Elegir fotos",
  dropText: "o suéltalas en cualquier parte de la página, o pega una",
  working: "Analizando…",
  wholeImage: "Tomar toda la foto como un rostro",
  tookWhole: "toda la foto, tomada como un rostro",
  facesFound: "{number} rostros",
  faceFound: "1 rostro",
  photoDone: "{name}: {emotion}, {share}",
  window: "Periodo",
  window600: "10 minutos",
  window3600: "1 hora",
  window86400: "24 horas",
  window604800: "7 días",
  refresh: "Actualizar",
  meanConfidence: "Confianza media",
  latency50: "Latencia, mediana",
  latency99: "Latencia, percentil 99",
  shares: "Emociones",
  emotion: "Emoción",
  share: "Proporción",
  count: "Cantidad",
  overTime: "Proporción en el tiempo",
  overTimeShares: "Proporción de las emociones, de {from} a {to}",
  latest: "Últimas predicciones",
  latestEmpty:
    "Ninguna desde que esta página se conectó. Lo que se predijo sin token ni clave de API solo se muestra a la " +
    "conexión que lo pidió.",
  when: "Cuándo",
  confidence: "Confianza",
  more: "Ver más",
  historyEmpty: "No se guardó nada en este periodo. Enciende la cámara o añade una foto y vuelve aquí.",
  historyMissing: "Este servidor no guarda un historial que pueda mostrar.",
  note:
    "La puntuación de una emoción dice a cuál de las etiquetas se parece un rostro en una imagen. No dice lo que una " +
    "persona siente. No la uses para juzgar a nadie.",
  angry: "Enojo",
  disgust: "Asco",
  fear: "Miedo",
  happy: "Alegría",
  neutral: "Neutral",
  sad: "Tristeza",
  surprise: "Sorpresa",
  seen: "{emotion}, {share}",
  error_camera_refused:
    "Se denegó la cámara. Permítela para esta página en la barra de direcciones y enciéndela de nuevo.",
  error_camera_missing: "No se encontró ninguna cámara. Conecta una o usa fotos.",
  error_camera_busy: "No se puede leer la cámara. Quizá otro programa la está usando.",
  error_camera_insecure:
    "Los navegadores solo dan la cámara a páginas de https:// o localhost. Usa fotos, o configura TLS.",
  error_camera_ended: "La cámara se desconectó.",
  error_no_face: "No se encontró ningún rostro en esta foto.",
  error_invalid_image:
    "Esta imagen no se puede leer: está cortada o dañada, es diminuta, o no es JPEG, PNG, WebP ni BMP. Guárdala de nuevo como JPEG.",
  error_too_many_photos: "La página muestra {most} fotos. Añade las demás cuando estas estén listas, desde {name}.",
  error_unreadable:
    "No se puede leer. Quizá el archivo se movió o cambió; si es una carpeta, elige las fotos que contiene.",
  error_image_too_large: "La imagen es demasiado grande para el servidor.",
  error_overloaded: "El servidor está sobrecargado. Inténtalo de nuevo en un momento.",
  error_rate_limited: "Demasiadas peticiones en poco tiempo. Inténtalo de nuevo en un momento.",
  error_unauthorized: "El servidor no aceptó el token o la clave de API. Quizá tiene un error o ha caducado.",
  error_token_needed: "El servidor pide un token o una clave de API.",
  error_deadline_exceeded: "El servidor tardó demasiado en responder.",
  error_connection_lost: "Se perdió la conexión con el servidor. La página se reconecta sola.",
  error_cannot_connect: "No se puede llegar al servidor. La página lo intenta de nuevo sola.",
  error_shutting_down: "El servidor se está apagando. La página se reconecta sola.",
  error_other: "No funcionó: {message}",
};

const TEXTS = { en: EN, es: ES };

/** Fires "change" after the language was changed. */
export const languages = new EventTarget();

const TAGS = navigator.languages ?? [navigator.language]; // the person's, such as es-MX, best first
const languageOf = (tag) => tag.slice(0, 2).toLowerCase();

let language = TAGS.map(languageOf).find((tag) => tag in TEXTS) ?? "en";

/** As the person's own country writes numbers and times in the language of the page. */
const locale = () => TAGS.find((tag) => languageOf(tag) === language) ?? language;

export const currentLanguage = () => language;

export function setLanguage(tag) {
  if (!(tag in TEXTS)) return;
  language = tag;
  translatePage();
  languages.dispatchEvent(new Event("change"));
}

/** A text, with its {placeholders} filled in. */
export function t(key, values = {}) {
  return TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

const EMOTIONS = ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"];

/** An emotion's name; labels of another model as they are, also one that is the name of another text. */
export const emotionName = (name) => (EMOTIONS.includes(name) ? t(name) : name);

/** What an error means to the person at the page. */
export function errorText(error) {
  const key = `error_${error.code}`;
  return t(key in TEXTS[language] ? key : "error_other", error);
}

export const percent = (share) =>
  new Intl.NumberFormat(locale(), { style: "percent", maximumFractionDigits: 0 }).format(share);

export const decimal = (number, digits = 0) =>
  new Intl.NumberFormat(locale(), { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(number);

/** Milliseconds, with as many digits as say something. */
export const milliseconds = (ms) => `${decimal(ms, ms < 10 ? 1 : 0)} ms`;

export const clock = (date, withDay) =>
  date.toLocaleString(locale(), {
    ...(withDay ? { day: "numeric", month: "short" } : {}),
    hour: "2-digit",
    minute: "2-digit",
    ...(withDay ? {} : { second: "2-digit" }),
  });

/** Put the language into every element that names its text (data-i18n) or its label (data-i18n-label). */
export function translatePage() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-i18n]")) element.textContent = t(element.dataset.i18n);
  for (const element of document.querySelectorAll("[data-i18n-label]")) {
    element.setAttribute("aria-label", t(element.dataset.i18nLabel));
  }
}
