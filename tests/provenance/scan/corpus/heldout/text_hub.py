import os

from datasets import (
    Dataset,
    get_dataset_config_names,
    load_dataset as ld,
)
from huggingface_hub import hf_hub_url
from transformers import AutoTokenizer
from transformers import pipeline as hf_pipeline
import datasets as ds

SETS = ["imdb", "yelp_polarity"]
REVISION = os.environ.get("REVISION", "main")

loaded = [ld(name, split="train") for name in SETS]  #>
pinned = ld("glue", "mrpc", revision="a" * 40)  #>
floating = ds.load_dataset(  #>
    path="user/private", token=os.environ["TOKEN"],
    revision=REVISION,
)
streamed = ds.load_dataset("c4", "en", streaming=True)["train"].take(10)  #>
json_set = ld("json", data_files=["https://example.org/a.jsonl", "b.jsonl"])  #>
text_set = ld("text", data_files={"train": ["a.txt"]})  #-
mapped = Dataset.from_pandas(None).map(lambda row: row)  #-
from_file = ds.Dataset.from_csv("train.csv")  #-
names = get_dataset_config_names("glue")  #-
tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")  #-
classify = hf_pipeline("text-classification")  #-
link = hf_hub_url("user/set", "x.csv")  #-
saved = ds.load_from_disk(os.path.join("data", "prepared"))  #-


def lazily():
    import datasets

    return datasets.load_dataset("xsum")  #>


try:
    from datasets import load_metric
except ImportError:
    load_metric = None  #-
