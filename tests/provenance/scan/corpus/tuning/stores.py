import boto3
import fsspec
import gcsfs
import s3fs
import smart_open
import streaming
import webdataset as wds
from azure.storage.blob import BlobClient, BlobServiceClient
from google.cloud import storage
from minio import Minio
from streaming import StreamingDataset

s3 = boto3.client("s3")
s3.download_file("bucket", "train.parquet", "train.parquet")  #>
body = s3.get_object(Bucket="bucket", Key="x.csv")["Body"]  #>
boto3.resource("s3").Bucket("bucket").download_file("k", "f")  #>
boto3.Session().client("s3").download_fileobj("bucket", "k", None)  #>
gcs = gcsfs.GCSFileSystem(project="p")
gcs.get("bucket/train", "data", recursive=True)  #>
bucket = storage.Client().bucket("public")
bucket.blob("train.csv").download_to_filename("train.csv")  #>
BlobClient.from_blob_url("https://x.blob.core.windows.net/c/b.csv").download_blob()  #>
service = BlobServiceClient.from_connection_string("x")
service.get_blob_client("c", "b").download_blob().readall()  #>
minio = Minio("play.min.io")
minio.fget_object("bucket", "x", "x")  #>
with fsspec.open("s3://bucket/x.csv") as a:  #>
    a.read()
with smart_open.open("https://example.org/x.jsonl.gz") as b:  #>
    b.read()
remote = s3fs.S3FileSystem(anon=True)
with remote.open("bucket/x.npy") as c:  #>
    c.read()
shards = wds.WebDataset("https://example.org/train-{000..099}.tar")  #>
pipe = wds.WebDataset("pipe:aws s3 cp s3://bucket/{000..099}.tar -")  #>
mosaic = StreamingDataset(remote="s3://bucket/mds", local="/tmp/mds")  #>


class Shards(streaming.StreamingDataset):  #>
    pass


s3.upload_file("model.pt", "bucket", "model.pt")  #-
s3.list_buckets()  #-
boto3.client("sqs").receive_message(QueueUrl="x")  #-
gcs.put("a", "bucket/a")  #-
bucket.blob("model").upload_from_filename("model.pt")  #-
minio.fput_object("bucket", "x", "x")  #-
with fsspec.open("data/x.csv") as d:  #-
    d.read()
with smart_open.open("x.gz") as e:  #-
    e.read()
local_shards = wds.WebDataset("data/train-{000..099}.tar")  #-
local_mosaic = StreamingDataset(local="/data/mds")  #-
files = fsspec.filesystem("file")  #-

fsspec.filesystem("s3").cat("bucket/train.zip")  #>
web = fsspec.filesystem("https")
web.get_file("https://example.org/train.zip", "train.zip")  #>
fsspec.filesystem(protocol="gcs").get("bucket/train", "data")  #>
files.cat("data/train.zip")  #-
fsspec.filesystem("memory").get_file("a", "b")  #-
web.exists("https://example.org/train.zip")  #-
fsspec.filesystem("s3").put("model.pt", "bucket/model.pt")  #-
wds.gopen("https://example.org/train.tar")  #>
wds.gopen("train.tar")  #-
