"""The older server's database, as it is in the field."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from service.store.schema import predictions_log
from tests.store.harness import execute

# Its own statements.
OLDER_SERVER = {
    "postgresql": """
        CREATE TABLE emotion_class (
            emotion_id SERIAL PRIMARY KEY, emotion_name VARCHAR(50) UNIQUE, emotion_desc TEXT);
        CREATE TABLE model_version (
            model_id SERIAL PRIMARY KEY, model_version_tag VARCHAR(100) UNIQUE, model_filename VARCHAR(255),
            model_status VARCHAR(2), creation_date TIMESTAMPTZ);
        CREATE TABLE predictions_log (
            predic_id BIGSERIAL PRIMARY KEY, emotion_id INTEGER REFERENCES emotion_class(emotion_id),
            confidence FLOAT, model_id INTEGER REFERENCES model_version(model_id), processing_time_ms INTEGER,
            source_ip INET, timestamp TIMESTAMPTZ DEFAULT now())""",
    "sqlite": """
        CREATE TABLE emotion_class (
            emotion_id INTEGER NOT NULL PRIMARY KEY, emotion_name VARCHAR(50), emotion_desc TEXT,
            CONSTRAINT emotion_class_emotion_name_key UNIQUE (emotion_name));
        CREATE TABLE model_version (
            model_id INTEGER NOT NULL PRIMARY KEY, model_version_tag VARCHAR(100), model_filename VARCHAR(255),
            model_status VARCHAR(2), creation_date DATETIME,
            CONSTRAINT model_version_model_version_tag_key UNIQUE (model_version_tag));
        CREATE TABLE predictions_log (
            predic_id INTEGER NOT NULL PRIMARY KEY, emotion_id INTEGER REFERENCES emotion_class(emotion_id),
            confidence FLOAT, model_id INTEGER REFERENCES model_version(model_id), processing_time_ms INTEGER,
            source_ip VARCHAR(45), timestamp DATETIME DEFAULT CURRENT_TIMESTAMP)""",
}

# Of `predictions_log`.
OLDER_COLUMNS = (
    "predic_id",
    "emotion_id",
    "confidence",
    "model_id",
    "processing_time_ms",
    "source_ip",
    "timestamp",
)


def make_older_server(engine: sa.Engine, emotions: Sequence[str]) -> None:
    """Its tables, with its own rows: these emotions, one model, twenty predictions."""
    execute(
        engine,
        OLDER_SERVER[engine.dialect.name],
        *(
            f"INSERT INTO emotion_class (emotion_name, emotion_desc) VALUES ('{name}', 'mine')"
            for name in emotions
        ),
        "INSERT INTO model_version (model_version_tag, model_filename, model_status, creation_date)"
        " VALUES ('v0.9', 'modelo_emociones.keras', '01', '2025-01-01 00:00:00+00:00')",
        *(
            "INSERT INTO predictions_log (emotion_id, confidence, model_id, processing_time_ms, source_ip)"
            f" VALUES ({1 + number % len(emotions)}, 0.5, 1, {number}, '192.0.2.{number}')"
            for number in range(20)
        ),
    )


def older_columns(engine: sa.Engine) -> list[tuple[object, ...]]:
    """The predictions, as far as it knows their columns."""
    with engine.connect() as connection:
        query = sa.select(*(predictions_log.c[name] for name in OLDER_COLUMNS)).order_by(
            predictions_log.c.predic_id
        )
        return [tuple(row) for row in connection.execute(query)]
