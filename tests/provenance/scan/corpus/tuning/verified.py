import promotion_gate
from promotion_gate import open_dataset, verified_path as where

a = open_dataset("gtsrb")  #>
b = promotion_gate.open_dataset("never-registered")  #>
c = where("gtsrb")  #>
