{{ collection() }}
