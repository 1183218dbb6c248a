import boto3
import botocore.config
import dask.dataframe as dd
import fsspec
import pandas as pd
import polars
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import streaming as mosaic
import torch
import webdataset
from azure.storage.blob import ContainerClient
from google.cloud.storage import Client as Gcs

BUCKET = "public-data"
PREFIX = "s3://" + BUCKET
paths = {"train": f"{PREFIX}/train.parquet", "local": "local.parquet"}


class Store:
    def __init__(self):
        self.client = boto3.client("s3", config=botocore.config.Config())
        self.gcs = Gcs().get_bucket("public")

    def pull(self, key):
        self.client.download_file(Bucket=BUCKET, Key=key, Filename=key)  #>

    def push(self, key):
        self.client.put_object(Bucket=BUCKET, Key=key, Body=b"")  #-
        self.client.upload_fileobj(open(key, "rb"), BUCKET, key)  #-

    def blobs(self):
        for blob in self.gcs.list_blobs(prefix="train/"):
            blob.download_to_filename(blob.name)  #>


def container():
    client = ContainerClient.from_container_url("https://x.blob.core.windows.net/data")
    return client.download_blob("train.csv").readall()  #>


train = pd.read_parquet(paths["train"])  #>
local = pd.read_parquet(paths["local"])  #-
lazy = dd.read_csv(PREFIX + "/*.csv")  #>
table = pq.read_table("s3://public-data/x.parquet")  #>
arrow = pads.dataset("gs://public-data/x", format="parquet")  #>
scan = polars.scan_csv("https://example.org/scan.csv", separator=";")  #>
files = fsspec.open_files("gcs://public-data/*.json")  #>
cached = fsspec.open("simplecache::https://example.org/c.csv")  #>
mapper = fsspec.get_mapper("s3://public-data/zarr")  #>
urls = "https://example.org/shards/{00..99}.tar"
shards = webdataset.WebDataset(urls, shardshuffle=True).decode("pil")  #>
text = mosaic.StreamingDataLoader(mosaic.StreamingDataset(local="a", remote="gs://b/c"))  #>
state = torch.hub.load_state_dict_from_url(url="https://example.org/s.pth")  #>
frames = [pd.read_csv(f"https://example.org/{year}.csv") for year in (2023, 2024)]  #>
excel = pd.ExcelFile("https://example.org/x.xlsx")  #>
sql = pd.read_sql("select 1", "sqlite://")  #-
clip = pd.read_clipboard()  #-
written = polars.DataFrame({"a": [1]}).write_parquet("s3://ours/out.parquet")  #-
listing = boto3.client("s3").list_objects_v2(Bucket=BUCKET)  #-
near = fsspec.open("file:///data/x.csv")  #-
memory = pq.read_table("x.parquet")  #-
