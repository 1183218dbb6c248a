import datasets
import datasets as hfd
import huggingface_hub
import kagglehub
from datasets import load_dataset, load_from_disk
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

NAME = "cifar10"

a = load_dataset("cifar10")  #>
b = load_dataset(NAME, split="train", revision="main")  #>
c = hfd.load_dataset("user/set", revision="0123456789abcdef0123456789abcdef01234567")  #>
d = datasets.load_dataset("csv", data_files="https://example.org/x.csv")  #>
e = load_dataset("parquet", data_files={"train": "hf://datasets/user/set/train.parquet"})  #>
f = hf_hub_download(repo_id="user/set", filename="train.parquet", repo_type="dataset")  #>
g = snapshot_download("user/set", repo_type="dataset", revision="v1.0")  #>
api = HfApi()
h = api.snapshot_download("user/other", repo_type="dataset")  #>
i = kagglehub.dataset_download("user/set/versions/3")  #>
j = kagglehub.dataset_download("user/set")  #>
k = kagglehub.competition_download("digit-recognizer")  #>
m = datasets.load_dataset_builder("squad")  #>
fs = huggingface_hub.HfFileSystem()
n = fs.open("datasets/user/set/train.csv")  #>

o = load_from_disk("prepared")  #-
p = load_dataset("csv", data_files="train.csv")  #-
q = load_dataset("imagefolder", data_dir="data/train")  #-
r = load_dataset("./prepared")  #-
s = datasets.Dataset.from_dict({"a": [1]})  #-
t = datasets.concatenate_datasets([o, p])  #-
u = huggingface_hub.upload_file(path_or_fileobj="x", path_in_repo="x", repo_id="u/x")  #-
api.create_repo("user/new")  #-

datasets.Dataset.load_from_disk("s3://bucket/set")  #>
datasets.DatasetDict.load_from_disk(dataset_dict_path="s3://bucket/sets")  #>
datasets.DownloadManager().download("https://example.org/x.zip")  #>
huggingface_hub.Repository("data", clone_from="user/set", repo_type="dataset")  #>
kagglehub.notebook_output_download("user/notebook")  #>
datasets.Dataset.load_from_disk("prepared")  #-
huggingface_hub.Repository("data")  #-
