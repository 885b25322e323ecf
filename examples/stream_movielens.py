"""MovieLens ratings as a stream: replayed in the order of time through Kafka into features, and looked up.

Run it as a script. It starts a Kafka of its own in a folder that it removes again, or takes the one that
KAFKA_BOOTSTRAP_SERVERS names, and writes an online store there.
"""

# %% The ratings, in the order of time.
import json
import os
import tempfile
import tomllib
from pathlib import Path

import polars as pl

from headwater.feature_store.online.lookup import Lookup
from headwater.feature_store.online.store import Partition
from headwater.feature_store.online.stores import open_store
from headwater.pipelines.datasets import get
from headwater.pipelines.streams.broker import running_broker
from headwater.pipelines.streams.declared import FeatureSettings
from headwater.pipelines.streams.features import FeaturesJob
from headwater.pipelines.streams.kafka_bus import KafkaBus
from headwater.pipelines.streams.kafka_python import KafkaAdminClient, KafkaProducer
from headwater.pipelines.streams.recovery import check_wiring
from headwater.pipelines.streams.runtime import Runtime
from headwater.pipelines.streams.settings import parse_settings
from headwater.pipelines.streams.upkeep import bind

ratings = pl.read_parquet(get("ml-100k") / "ratings.parquet").sort("timestamp")

# %% What is to be known of users and films.
JOB = """
name = "ratings"
[source]
topics = ["ratings"]
time = "timestamp"
time_unit = "s"
allowed_lateness_s = 0
columns = [
  { name = "user_id", dtype = "int64" },
  { name = "item_id", dtype = "int64" },
  { name = "rating", dtype = "int64" },
  { name = "timestamp", dtype = "int64" },
]
[[tables]]
name = "users"
key = "user_id"
features = [
  { kind = "count", name = "ratings" },
  { kind = "history", name = "last_films", column = "item_id", length = 5 },
]
[[tables]]
name = "films"
key = "item_id"
features = [
  { kind = "count", name = "ratings_30d", window_s = 2592000, grain_s = 86400 },
  { kind = "rate", name = "liked", of = { rating = [4, 5] }, over = {}, prior = 0.5, strength = 20 },
]
"""

# %% Every rating goes through Kafka; the job ends when it has read the last.
with tempfile.TemporaryDirectory() as folder, running_broker(Path(folder) / "kafka") as servers:
    os.environ["KAFKA_BOOTSTRAP_SERVERS"] = servers
    with KafkaAdminClient(bootstrap_servers=servers) as admin:
        admin.create_topics({"ratings": {"num_partitions": 1, "replication_factor": 1}})
    with KafkaProducer(bootstrap_servers=servers, linger_ms=20) as producer:
        for rating in ratings.select("user_id", "item_id", "rating", "timestamp").iter_rows(
            named=True
        ):
            producer.send("ratings", json.dumps(rating).encode())

    settings = parse_settings(
        tomllib.loads(JOB) | {"store": f"lmdb:{folder}/store"}, FeatureSettings
    )
    store, bus = open_store(settings.store, settings.name), KafkaBus(settings.kafka)
    bind(store, settings.encoded(), settings)
    check_wiring(settings, store, bus)
    job = Runtime(FeaturesJob(settings.definition()), settings, store, bus)
    job.run(lambda: store.positions()[Partition("ratings", 0)] >= len(ratings))

    # %% The features of three films at the end of the log, as the service looks them up.
    end_ms = max(ratings["timestamp"].to_list()) * 1000 + 1
    found = Lookup(store, source=settings.store).look_up(
        {"users": [1], "films": [50, 181, 9999]}, end_ms
    )
    print("last films of user 1:", found["users"].values["last_films"])
    print("liked:", found["films"].values["liked"])
    print("ratings in 30 days:", found["films"].values["ratings_30d"])
    store.close()
