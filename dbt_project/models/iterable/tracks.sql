{{ collection(every_event=true) }}
