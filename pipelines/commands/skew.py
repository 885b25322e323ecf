"""`headwater skew`: replay events through both times of a stream job's features, offline and online."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from headwater.feature_store.errors import HeadwaterError
from headwater.pipelines.console import emit, note, table
from headwater.pipelines.options import AsJson


def skew(
    stream: Path,
    *,
    events: Path | None = None,
    arrival: str | None = None,
    last: int = 100_000,
    json: AsJson = False,
) -> None:
    """Compare a job's features by an offline join with those of the online state; fail where they differ.

    By event time both must be equal. As seen, which is when an event counts once it has arrived, the
    difference is the freshness that is lost to delays.

    Parameters
    ----------
    stream
        The job.
    events
        Parquet file of events, with the columns of the job; its topics when absent.
    arrival
        Column of the file with the arrival time in milliseconds; the event time when absent.
    last
        Events of the topics at most, the newest.
    """
    from headwater.pipelines.streams.declared import FeatureSettings
    from headwater.pipelines.streams.kafka_bus import KafkaBus
    from headwater.pipelines.streams.past_events import read_file, read_topics
    from headwater.pipelines.streams.settings import load_settings
    from headwater.pipelines.streams.skew import measure_skew

    settings = load_settings(stream, FeatureSettings)
    if events is not None:
        batch = read_file(settings.source, events, arrival)
    else:
        batch = read_topics(settings, KafkaBus(settings.kafka), last)
    note(f"comparing {batch.num_rows:,} events")
    found = measure_skew(settings.definition(), batch) if batch.num_rows else []
    rows = [asdict(each) for each in found]
    emit(
        {"events": batch.num_rows, "features": rows},
        as_json=json,
        text=table(
            f"{batch.num_rows:,} events: values that differ by event time, and as seen",
            [
                {
                    "feature": each.feature,
                    "values": each.values,
                    "different": each.different,
                    "as seen": each.late,
                }
                for each in found
            ],
        ),
    )
    if wrong := [each for each in found if each.different]:
        raise HeadwaterError(
            "\n".join(
                f"{each.feature}: {each.different:,} values differ; {each.example}"
                for each in wrong
            )
        )
