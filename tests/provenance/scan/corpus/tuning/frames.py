import numpy as np
import pandas as pd
import polars as pl
from pandas import read_csv

HOST = "https://example.org"
LOCAL = "data"

a = pd.read_csv("https://example.org/a.csv")  #>
b = pd.read_parquet(f"{HOST}/b.parquet")  #>
c = read_csv(HOST + "/c.csv", sep=";")  #>
d = pd.read_json(path_or_buf="s3://bucket/d.json")  #>
e = pl.read_csv("https://example.org/e.csv")  #>
f = pl.scan_parquet("gs://bucket/f/*.parquet")  #>
g = np.loadtxt("https://example.org/g.txt")  #>
h = np.genfromtxt("%s/h.txt" % HOST)  #>
k = pd.read_excel("{}/k.xlsx".format(HOST))  #>


def table(data_url):
    return pd.read_csv(data_url)  #>


m = pd.read_csv("data/m.csv")  #-
n = pd.read_parquet(f"{LOCAL}/n.parquet")  #-
o = np.load("o.npy")  #-
p = np.loadtxt("p.txt")  #-
q = pl.read_parquet("q.parquet")  #-
a.to_csv("https://example.org/upload.csv")  #-


def plain(path):
    return pd.read_csv(path)  #-


class Reader:
    def read_csv(self, url):
        return url


r = Reader().read_csv("https://example.org/r.csv")  #-
